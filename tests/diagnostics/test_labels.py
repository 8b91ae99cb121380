"""Predictive checks, InferenceData and leave-one-out of numbers and of several labels, against closed forms."""

import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Normal

from pyro_isingvit import (
    Classes,
    FitConfig,
    Images,
    IndependentSpikeSlab,
    InputError,
    IsingViT,
    LikelihoodGuided,
    Posterior,
    Regression,
    SeveralLabels,
    ViT,
    fit,
    split,
)
from pyro_isingvit.diagnostics import (
    examine,
    leave_one_out,
    posterior_predictive_check,
    power_sensitivity,
    predictive_check,
    prior_predictive_check,
    to_inference_data,
)
from pyro_isingvit.diagnostics.arviz_adapter import arviz, read_netcdf, write_netcdf
from pyro_isingvit.diagnostics.label_statistics import STATISTICS
from pyro_isingvit.diagnostics.plots import plot_check
from pyro_isingvit.targets import TargetPrediction
from pyro_isingvit.testing import TINY

SCALE = 0.7
"""Scale of the noise."""


def certain(likelihood, outputs, **options):
    """A posterior whose weights are next to certain, so that the likelihood alone is random."""
    network = ViT(TINY.model_copy(update={"classes": outputs}))
    model = IsingViT(network, IndependentSpikeSlab(network.weight_sites()), likelihood=likelihood)
    return Posterior.of(LikelihoodGuided(model, **({"initial_scale": 1e-6, "initial_logit": 30.0} | options)))


def numbers(n=90, noise=SCALE, k=2):
    """A posterior of k numbers, and labels that it predicts with this noise."""
    posterior, images = certain(Regression(k, initial_scale=SCALE), k), torch.rand(n, 1, 4, 4)
    means = posterior.plug_in_outputs(images)
    return posterior, Images(images, means + noise * torch.randn(n, k), k), means


def several(n=90):
    """A posterior of two labels, and labels that it predicts."""
    posterior, images = certain(SeveralLabels(), 2), torch.rand(n, 1, 4, 4)
    probs = posterior.plug_in_outputs(images).sigmoid()
    return posterior, Images(images, torch.rand(n, 2) < probs, 2), probs


def failing(table):
    return {(row["statistic"], row["class"]) for _, row in table[table["fails"]].iterrows()}


def test_statistics_of_numbers_by_hand():
    labels = torch.tensor([[0.0], [1.0], [2.0], [5.0], [4.0], [6.0]])
    mean = torch.tensor([[0.0], [0.0], [2.0], [3.0], [4.0], [5.0]])
    predicted = TargetPrediction(mean, mean - 1, mean + 1, torch.zeros(6, 1))
    found = {name: statistic(labels, predicted) for name, statistic in STATISTICS["numbers"].items()}
    assert {name: value.tolist() for name, value in found.items() if name != "sd"} == {
        "mean": [3.0],
        "5% quantile": [0.25],
        "95% quantile": [5.75],
        "residual, predicted low": [pytest.approx(0.5**0.5)],
        "residual, predicted high": [pytest.approx(0.5**0.5)],
        "coverage of 90%": [pytest.approx(5 / 6)],
    }
    assert float(found["sd"]) == pytest.approx(np.std([0, 1, 2, 5, 4, 6]))


def test_statistics_of_several_labels_by_hand():
    labels = torch.tensor([[True, True], [False, False], [True, False], [False, True]])
    probs = torch.tensor([[0.8, 0.5], [0.4, 0.5], [0.4, 0.1], [0.9, 0.9]])
    found = {name: statistic(labels, probs).tolist() for name, statistic in STATISTICS["several labels"].items()}
    nll = -np.log([0.8 * 0.5, 0.6 * 0.5, 0.4 * 0.9, 0.1 * 0.9]).mean()
    assert found == {
        "label frequency": [0.5, 0.5],
        "labels of an image": 1.0,
        "sd of labels of an image": pytest.approx(0.5**0.5),
        "nll": pytest.approx(nll),
        "label error": [0.5, 0.25],
    }


@pytest.mark.parametrize("kind", ["numbers", "several labels"])
def test_p_values_are_uniform_if_the_labels_come_from_the_model(kind):
    """80 data sets of 45 images, each with 100 replications of its own."""
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(45, 1, generator=generator)
    if kind == "numbers":
        drawn = means + torch.randn(80, 101, 45, 1, generator=generator)
        low, high = (means + scipy.stats.norm.ppf(level) for level in (0.05, 0.95))
        predicted = TargetPrediction(means, low, high, torch.zeros(45, 1))
    else:
        predicted = torch.cat([means, -means], 1).sigmoid()
        drawn = torch.rand(80, 101, 45, 2, generator=generator) < predicted
    p_values = {}
    for each in drawn:
        table = predictive_check(each[0], each[1:], predicted).drop_duplicates("statistic")
        for name, value in zip(table["statistic"], table["p_value"], strict=True):
            p_values.setdefault(name, []).append(value)
    assert set(p_values) == set(STATISTICS[kind])
    for name, values in p_values.items():
        assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3, name  # at most 7 in 1,000 right ones fail


def test_noise_of_another_size_is_flagged():
    posterior, data, means = numbers()
    table = posterior_predictive_check(posterior, data, draws=200)
    assert not table["fails"].any()
    assert set(table["class"]) == {0, 1}
    observed = table.set_index(["statistic", "class"])["observed"]
    inside = (data.labels - means).abs() <= SCALE * scipy.stats.norm.ppf(0.95)
    # quantiles of 200 replicates are off by .05 in level, which moves few of 90 images across a bound
    assert observed["coverage of 90%", 0] == pytest.approx(float(inside[:, 0].float().mean()), abs=0.05)
    assert plot_check(table).get_yticklabels()[1].get_text() == "mean 1"

    wider = Images(data.images, means + 2 * (data.labels - means), 2)
    fails = failing(posterior_predictive_check(posterior, wider, draws=200))
    assert {("coverage of 90%", 0), ("residual, predicted low", 1), ("residual, predicted high", 1)} <= fails


def test_noise_that_grows_with_the_prediction_is_flagged():
    posterior, data, means = numbers(k=1)
    grows = torch.where(means > means.median(), 2.5, 1.0)
    table = posterior_predictive_check(
        posterior, Images(data.images, means + grows * (data.labels - means), 1), draws=200
    )
    fails = {name for name, _ in failing(table)}
    assert "residual, predicted high" in fails
    assert "residual, predicted low" not in fails
    assert table["class"].isna().all()


def test_labels_that_come_together_are_flagged():
    """The likelihood takes labels of an image to be independent; here the second is a copy of the first."""
    posterior, data, _ = several()
    assert not posterior_predictive_check(posterior, data, draws=200)["fails"].any()
    together = Images(data.images, data.labels[:, :1].expand(-1, 2).clone(), 2)
    names = {name for name, _ in failing(posterior_predictive_check(posterior, together, draws=200))}
    assert "sd of labels of an image" in names


def test_prior_checks_take_numbers():
    """Weights of order one: numbers of a thousand are not to be expected."""
    posterior, data, _ = numbers(k=1)
    far = Images(data.images, data.labels + 1000, 1)
    assert "mean" in {name for name, _ in failing(prior_predictive_check(posterior.model, far, draws=100))}


@pytest.mark.parametrize("kind", ["numbers", "several labels"])
def test_inference_data_is_that_of_the_likelihood(kind, tmp_path):
    if kind == "numbers":
        posterior, data, means = numbers(n=40)
        expected = scipy.stats.norm.logpdf(data.labels, means, SCALE).sum(1)
        dims, error = ("image", "number"), SCALE
    else:
        posterior, data, means = several(n=40)
        expected = scipy.stats.bernoulli.logpmf(data.labels.int(), means).sum(1)
        dims, error = ("image", "class"), 0.5
    found = to_inference_data(posterior, data, draws=100, prior=3, predictions=data.images[:5])
    assert np.abs(found.log_likelihood["label"].values[0] - expected).max() < 1e-3
    assert found.observed_data["label"].dims == dims
    assert (found.observed_data["label"].values == data.labels.numpy()).all()
    replicated = found.posterior_predictive["label"]
    assert replicated.dims == ("chain", "draw", *dims)
    assert replicated.dtype == (np.float32 if kind == "numbers" else bool)
    drawn = replicated.values[0].astype(float)
    assert np.abs(drawn.mean(0) - means.numpy()).max() < 5 * error / 100**0.5
    if kind == "numbers":  # a standard deviation of 8,000 normal residuals is known to 1 in 120
        assert (drawn - means.numpy()).std() == pytest.approx(SCALE, rel=0.04)
    assert found.predictions["label"].shape == (1, 100, 5, 2)
    assert found.prior_predictive["label"].dims == ("chain", "draw", *dims)
    write_netcdf(found, tmp_path / "fit.nc")
    again = read_netcdf(tmp_path / "fit.nc")
    assert (again.posterior_predictive["label"].values == replicated.values).all()
    found.log_likelihood["label"].values[0] += 1e-5 * np.random.default_rng(0).normal(size=(100, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that are nearly the same; ArviZ 1.3 refuses equal ones
        loo = arviz().loo(found)
    assert float(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo) == pytest.approx(expected.sum(), abs=0.05)


def test_leave_one_out_of_numbers_is_that_of_a_known_predictive():
    """Weights without uncertainty: each image is predicted by the normal noise alone."""
    posterior, data, means = numbers(n=30)
    loo = leave_one_out(posterior, data, draws=50)
    expected = Normal(means, SCALE).log_prob(data.labels).sum(1)
    assert np.abs(loo.pointwise - expected.detach().numpy()).max() < 1e-2


def test_weights_of_classes_count_in_the_posterior_that_leave_one_out_is_of(stripes):
    """Classes that all count twice at T = 1 are classes that count once at T = 1 / 2."""
    both = []
    for weights, temperature in (((2.0, 2.0, 2.0), 1.0), (None, 0.5)):
        torch.manual_seed(0)
        posterior = certain(Classes(weights), 3, initial_scale=0.1)
        posterior.model.temperature = temperature
        both.append(leave_one_out(posterior, stripes, draws=50))
    np.testing.assert_allclose(both[0].pointwise, both[1].pointwise, rtol=1e-5)
    assert both[0].k_hat == pytest.approx(both[1].k_hat, rel=1e-5)


def test_sensitivity_takes_numbers():
    posterior, data, means = numbers(n=30)
    table = power_sensitivity(posterior, data, draws=50).set_index("quantity")
    expected = -scipy.stats.norm.logpdf(data.labels, means, SCALE).sum(1).mean()
    assert table.loc["nll", "mean"] == pytest.approx(expected, abs=1e-3)
    assert "entropy" not in table.index


def test_what_does_not_fit_is_refused(stripes):
    posterior, data, means = numbers(n=30)
    for name, call in (
        ("data", lambda: posterior_predictive_check(posterior, stripes)),
        ("data", lambda: prior_predictive_check(posterior.model, stripes)),
        ("data", lambda: to_inference_data(posterior, stripes)),
        ("train", lambda: leave_one_out(posterior, stripes)),
        ("held_out", lambda: power_sensitivity(posterior, data, stripes)),
    ):
        with pytest.raises(
            InputError, match=rf"^{name}\.labels: classes, and the likelihood, Regression, is of numbers"
        ):
            call()
    one = Images(data.images, data.labels[:, :1], 1)
    with pytest.raises(InputError, match=r"^data\.classes=1: the network has 2"):
        to_inference_data(posterior, one)
    replicated = data.labels.expand(100, -1, -1)
    with pytest.raises(InputError, match="predicted=Tensor: labels are numbers, so give a TargetPrediction"):
        predictive_check(data.labels, replicated, means)
    predicted = TargetPrediction(means[:, :1], means, means, means)
    with pytest.raises(InputError, match=r"predicted \(30, 1\): need \(n, k\), \(draws, n, k\) and"):
        predictive_check(data.labels, replicated, predicted)


def test_the_report_is_of_classes_alone():
    posterior, data, _ = numbers(n=30, k=1)
    parts = split(data, train=15, validation=5, test=10)
    config = FitConfig(steps=2, temperature=1.0, device="cpu")
    result = fit(posterior.guide, parts.train, config=config, progress=False)
    with pytest.raises(InputError, match=r"^examine: of classes alone, and the likelihood is Regression"):
        examine(result, parts)
