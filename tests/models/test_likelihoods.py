"""Likelihoods against closed forms, and fits of numbers, of several labels, and of weighted classes."""

import math
from contextlib import nullcontext

import numpy as np
import pyro
import pytest
import scipy.stats
import torch

from pyro_isingvit import (
    Classes,
    FitConfig,
    Images,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    Likelihood,
    LikelihoodGuided,
    Posterior,
    Regression,
    SeveralLabels,
    TraceGraph_ELBO,
    ViT,
    fit,
    split,
)
from pyro_isingvit.guides import PointEstimate
from pyro_isingvit.inference.reference import sample_reference
from pyro_isingvit.models.priors import Flat
from tests.conftest import TINY


def guide_with(likelihood, outputs, family=LikelihoodGuided, **options):
    network = ViT(TINY.model_copy(update={"classes": outputs}))
    prior = Flat(network.weight_sites()) if family is PointEstimate else IsingSpikeSlab(network.weight_sites())
    return family(IsingViT(network, prior, likelihood=likelihood), **options)


@pytest.fixture
def brightness():
    """Sixty images, each with its mean brightness, at unit scale, and noise of scale .2."""
    images = torch.rand(60, 1, 4, 4) * torch.rand(60, 1, 1, 1)
    mean = images.mean((1, 2, 3))
    return Images(images, (mean - mean.mean()) / mean.std() + 0.2 * torch.randn(60), 1)


@pytest.mark.parametrize(
    ("initial_scale", "rate", "settled"), [(10.0, 1.0, False), (10.0, 10.0, True), (0.9, 1.0, True)]
)
def test_a_scale_that_has_not_settled_is_warned_of(initial_scale, rate, settled):
    """Labels are noise of scale .5 about a constant, and the network may not fit it: all but the scale is held."""
    labels = 0.5 * torch.randn(200, 1) + 0.3
    guide = guide_with(Regression(initial_scale=initial_scale), 1, PointEstimate)
    guide.model.network.requires_grad_(False)
    for parameter in guide.parameters():
        parameter.requires_grad_(False)
    rates = {"*log_scale": rate}
    config = FitConfig(steps=300, batch_size=50, learning_rate=2e-3, temperature=1.0, device="cpu", rates=rates)
    images = Images(torch.zeros(200, 1, 4, 4), labels, 1)
    with (
        nullcontext() if settled else pytest.warns(UserWarning, match=r"Regression: the scale of number 0 has come to")
    ):
        likelihood = fit(guide, images, config=config, progress=False).posterior.model.likelihood
    with torch.no_grad():
        rmse = float((labels - guide.model.network(torch.zeros(1, 1, 4, 4))).square().mean().sqrt())
    assert (float(likelihood.log_scale.detach().exp()) == pytest.approx(rmse, rel=0.1)) is settled


def test_a_likelihood_of_numbers_of_your_own_has_errors_of_numbers():
    class Counts(Likelihood):
        kind = "numbers"

        def distribution(self, outputs):
            return pyro.distributions.Poisson(outputs.exp()).to_event(1)

    scores = Counts().scores(torch.zeros(4, 1), torch.tensor([[1.0], [2.0], [1.0], [0.0]]))
    assert scores["rmse"] == pytest.approx(0.5**0.5)


def test_a_likelihood_of_several_labels_of_your_own_takes_booleans():
    class Several(Likelihood):
        kind = "several labels"

        def distribution(self, outputs):
            return pyro.distributions.Bernoulli(logits=2 * outputs).to_event(1)

    outputs, labels = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[True, False], [False, True]])
    scores = Several().scores(outputs, labels)
    assert scores["accuracy"] == 0.75
    assert scores["nll"] == pytest.approx(-float(Several().log_prob(outputs, labels).mean()))


def test_log_densities_are_those_of_scipy():
    outputs, labels = torch.randn(5, 2), torch.randn(5, 1)
    found = Regression(heteroscedastic=True, initial_scale=2.0).log_prob(outputs, labels)
    scales = 2 * outputs[:, 1].exp()
    torch.testing.assert_close(
        found.double(), torch.tensor(scipy.stats.norm.logpdf(labels[:, 0], outputs[:, 0], scales))
    )
    fixed = Regression(2, initial_scale=0.5)
    targets = torch.randn(5, 2)
    expected = scipy.stats.norm.logpdf(targets, outputs, 0.5).sum(1)
    torch.testing.assert_close(fixed.log_prob(outputs, targets).double(), torch.tensor(expected).double())
    several = torch.rand(5, 2) < 0.5
    expected = scipy.stats.bernoulli.logpmf(several.int(), outputs.sigmoid()).sum(1)
    torch.testing.assert_close(SeveralLabels().log_prob(outputs, several).double(), torch.tensor(expected).double())


def test_a_class_that_counts_twice_is_there_twice(tiny_network, stripes):
    """The loss with weights is that of a data set with the images of a class repeated."""
    sites = tiny_network.weight_sites()
    twice = torch.cat([torch.arange(60), torch.arange(60)[stripes.labels == 1]])
    losses = []
    for likelihood, data in ((Classes((1.0, 2.0, 1.0)), stripes), (None, stripes[twice])):
        model = IsingViT(tiny_network, Flat(sites), likelihood=likelihood)
        losses.append(float(TraceGraph_ELBO().loss(model, PointEstimate(model), data.images, data.labels)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("heteroscedastic", [False, True])
def test_numbers_are_learned_with_their_noise(brightness, heteroscedastic):
    likelihood = Regression(heteroscedastic=heteroscedastic)
    guide = guide_with(likelihood, 1 + heteroscedastic, PointEstimate)
    config = FitConfig(steps=600, batch_size=30, learning_rate=1e-2, temperature=1.0, device="cpu")
    result = fit(guide, brightness, config=config, progress=False)
    assert result.history["rmse"].iloc[-1] < 0.6 < result.history["rmse"].iloc[0]
    assert result.history["nll"].iloc[-1] < result.history["nll"].iloc[0]
    assert result.posterior.predict_targets(brightness.images).mean.shape == (60, 1)


def test_the_scale_of_the_noise_is_that_of_the_residuals(brightness):
    """With the network as it is, the scale alone is learned, and its maximum-likelihood estimate is the RMSE."""
    guide = guide_with(Regression(initial_scale=3.0), 1, PointEstimate).requires_grad_(False)
    guide.model.network.requires_grad_(False)
    config = FitConfig(steps=600, batch_size=60, learning_rate=1e-2, temperature=1.0, device="cpu")
    result = fit(guide, brightness, config=config, progress=False)
    scale = float(result.posterior.model.likelihood.log_scale.detach().exp())
    assert scale == pytest.approx(result.history["rmse"].iloc[-1], rel=0.02)


def test_intervals_have_the_noise_and_the_spread_of_the_draws():
    """Weights next to certain: the interval is that of the normal noise alone."""
    guide = guide_with(Regression(initial_scale=0.7), 1, initial_scale=1e-6, initial_logit=30.0)
    posterior, images = Posterior.of(guide), torch.rand(40, 1, 4, 4)
    found = posterior.predict_targets(images, draws=20, interval=0.8)
    half = 0.7 * scipy.stats.norm.ppf(0.9)
    # quantiles at .1 of 500 replicates are known to .7 * .076; the mean over forty images to a sixth of that
    assert float((found.upper - found.lower).mean()) == pytest.approx(2 * half, abs=0.06)
    torch.testing.assert_close((found.upper + found.lower).mean() / 2, found.mean.mean(), atol=0.05, rtol=0)
    assert found.spread.max() < 1e-3
    labels = found.mean + 0.7 * torch.randn(40, 1)
    scores = posterior.target_scores(Images(images, labels, 1), draws=20, interval=0.8)
    expected = -scipy.stats.norm.logpdf(labels, found.mean, 0.7).mean()
    assert scores["nll"] == pytest.approx(float(expected), abs=1e-3)
    assert scores["rmse"] == pytest.approx(float((labels - found.mean).square().mean().sqrt()), abs=1e-3)
    inside = ((labels >= found.lower) & (labels <= found.upper)).float().mean()
    assert scores["coverage"] == pytest.approx(float(inside))


def test_each_member_of_a_mixture_has_its_own_noise():
    """Weights next to certain: the predictive distribution is a mixture of two normal ones."""
    certain = {"initial_scale": 1e-6, "initial_logit": 30.0}
    members = [Posterior.of(guide_with(Regression(initial_scale=scale), 1, **certain)) for scale in (0.1, 2.0)]
    posterior, images = Posterior(tuple(member.guide for member in members)), torch.rand(40, 1, 4, 4)
    means = torch.stack([member.predict_targets(images, draws=2).mean for member in members])
    labels = means.mean(0) + torch.randn(40, 1)
    densities = [scipy.stats.norm.pdf(labels, mean, scale) for mean, scale in zip(means, (0.1, 2.0), strict=True)]
    scores = posterior.target_scores(Images(images, labels, 1), draws=10)
    assert scores["nll"] == pytest.approx(-float(np.log(sum(densities) / 2).mean()), rel=1e-3)
    found = posterior.predict_targets(images, draws=10, interval=0.8)
    torch.testing.assert_close(found.mean, means.mean(0), atol=1e-3, rtol=0)
    # Nothing of the narrow part is beyond the bounds, so that each cuts off a fifth of the wide one.
    half = 2.0 * scipy.stats.norm.ppf(0.8)
    assert float((found.upper - found.lower).mean()) == pytest.approx(2 * half, rel=0.1)


def test_several_labels_are_learned(stripes):
    """An image has the first label if its first row is bright, and the second if its first row is not."""
    first = stripes.labels == 0
    data = Images(stripes.images, torch.stack([first, ~first], 1), 2)
    guide = guide_with(SeveralLabels(), 2)
    config = FitConfig(steps=300, batch_size=20, learning_rate=2e-2, temperature=1e-2, device="cpu")
    result = fit(guide, data, config=config, progress=False)
    scores = result.posterior.target_scores(data)
    assert scores["accuracy"] > 0.9
    assert set(scores) == {"nll", "accuracy"}
    found = result.posterior.predict_targets(data.images)
    assert (found.mean >= 0).all()
    assert (found.mean <= 1).all()
    assert (found.lower <= found.upper).all()


def test_a_likelihood_is_saved_and_loaded(brightness, tmp_path):
    guide = guide_with(Regression(initial_scale=0.5), 1)
    config = FitConfig(steps=20, batch_size=20, temperature=0.1, device="cpu")
    posterior = fit(guide, brightness, config=config, progress=False).posterior
    posterior.save(tmp_path / "fit")
    again = Posterior.load(tmp_path / "fit")
    assert torch.equal(again.model.likelihood.log_scale, posterior.model.likelihood.log_scale)
    first, second = (each.predict_targets(brightness.images, draws=3) for each in (posterior, again))
    assert torch.equal(first.lower, second.lower)
    with pytest.raises(InputError, match=r"likelihood.initial_scale is 1.0 and was 0.5|likelihood"):
        Posterior.load(tmp_path / "fit", guide_with(Regression(), 1))


def test_a_likelihood_of_ones_own(brightness):
    class Counts(Likelihood):
        kind = "numbers"

        def distribution(self, outputs):
            from pyro.distributions import Poisson

            return Poisson(outputs.exp()).to_event(1)

        def errors(self, means, labels):
            return {"rmse": float((means - labels).square().mean().sqrt())}

    counts = Images(brightness.images, torch.poisson(torch.full((60, 1), 3.0)), 1)
    config = FitConfig(steps=200, batch_size=20, learning_rate=1e-2, temperature=1.0, device="cpu")
    posterior = fit(guide_with(Counts(), 1, PointEstimate), counts, config=config, progress=False).posterior
    assert float(posterior.predict_targets(counts.images).mean.mean()) == pytest.approx(
        float(counts.labels.mean()), rel=0.2
    )


@pytest.mark.parametrize("estimator", ["squared_gradient", "levenberg_marquardt", "hessian_diagonal", "disarm", "none"])
def test_every_estimator_takes_numbers(brightness, estimator):
    guide = guide_with(Regression(), 1, estimator=estimator)
    config = FitConfig(steps=12, batch_size=20, pilot=0.0, temperature=0.1, device="cpu")
    posterior = fit(guide, brightness, config=config, progress=False).posterior
    assert math.isfinite(posterior.target_scores(brightness, draws=3)["nll"])


def test_the_reference_sampler_takes_numbers(brightness):
    model = guide_with(Regression(), 1).model
    found = sample_reference(model, brightness, draws=2, warmup=1, chains=1, progress=False)
    outputs = torch.func.functional_call(
        model.network, {name: each[0, 0] for name, each in found.weights.items()}, (brightness.images,)
    )
    expected = scipy.stats.norm.logpdf(brightness.labels, outputs.detach(), 1.0).sum(1)
    torch.testing.assert_close(
        found.log_likelihood[0, 0].double(), torch.tensor(expected).double(), atol=1e-4, rtol=1e-4
    )


def test_what_is_of_classes_alone_says_so(brightness):
    posterior = Posterior.of(guide_with(Regression(), 1))
    draw = next(iter(posterior.draws(1)))
    for what, call in {
        "predict": lambda: posterior.predict(brightness.images),
        "predict_plug_in": lambda: posterior.predict_plug_in(brightness.images),
        "calibrate": lambda: posterior.calibrate(brightness),
        "log_probs": lambda: draw.log_probs(brightness.images),
    }.items():
        with pytest.raises(InputError, match=rf"^{what}: of classes alone"):
            call()
    with pytest.raises(InputError, match="labels are classes; use predict"):
        Posterior.of(guide_with(None, 3)).predict_targets(brightness.images)
    with pytest.raises(InputError, match=r"held_out\.labels: classes; Regression is of numbers"):
        posterior.target_scores(Images(brightness.images, torch.zeros(60, dtype=torch.long), 1))


@pytest.mark.parametrize(
    ("likelihood", "outputs", "temperature", "message"),
    [
        (None, 1, 1.0, r"train.labels: numbers, and the likelihood, Classes, is of classes; give .*Regression\(\)"),
        (Regression(), 2, 1.0, r"train.classes=1: the network has 2; make it with 1, as by ViTConfig\(classes=1\)"),
        (
            Regression(heteroscedastic=True),
            1,
            1.0,
            r"train.classes=1: the network has 1; make it with 2, as by ViTConfig\(classes=2\)",
        ),
        (Regression(), 1, "auto", "temperature: a search, .* compares predictions of classes"),
    ],
)
def test_what_does_not_fit_is_refused(brightness, likelihood, outputs, temperature, message):
    config = FitConfig(steps=2, temperature=temperature, device="cpu")
    with pytest.raises(InputError, match=message):
        fit(guide_with(likelihood, outputs), brightness, brightness, config, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classes((1.0, 0.0)), "weights=0.0: must be a positive number"),
        (lambda: Regression(0), "numbers=0"),
        (lambda: Regression(initial_scale=-1.0), "initial_scale=-1.0"),
        (
            lambda: Images(torch.rand(3, 1, 4, 4), torch.rand(3), 2),
            r"labels of shape \(3, 1\) .* classes=2: floats are numbers",
        ),
        (
            lambda: Images(torch.rand(3, 1, 4, 4), torch.tensor([0.0, math.nan, 1.0]), 1),
            r"labels\[1\]=\[nan\]: must be finite",
        ),
        (lambda: Images(torch.rand(3, 1, 4, 4), torch.rand(4, 2) < 0.5, 2), "booleans are labels to predict"),
    ],
)
def test_impossible_values_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_numbers_cannot_be_balanced(brightness):
    with pytest.raises(InputError, match="balanced=True: labels are numbers"):
        split(brightness, train=30, balanced=True)
    assert split(brightness, train=30).train.labels.shape == (30, 1)


def test_one_class_is_nothing_to_predict(stripes):
    data = Images(stripes.images, torch.zeros(60, dtype=torch.long), 1)
    with pytest.raises(InputError, match=r"train\.classes=1: one class leaves nothing to predict"):
        fit(guide_with(None, 1), data, config=FitConfig(steps=2, temperature=1.0, device="cpu"), progress=False)
