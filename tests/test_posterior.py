"""The streamed posterior predictive against the same draws held in memory."""

from dataclasses import replace

import pyro
import pytest
import torch

from pyro_isingvit import (
    Images,
    InputError,
    LikelihoodGuided,
    Posterior,
    TrainingError,
)
from pyro_isingvit.logit_scale import best_logit_scale


@pytest.fixture
def guide(tiny_model):
    return LikelihoodGuided(tiny_model, initial_logit=0.5, initial_scale=0.3)


def test_summaries_equal_those_of_all_draws(guide, stripes, monkeypatch):
    monkeypatch.setattr("pyro_isingvit.posterior.BATCH", 7)
    posterior = Posterior((guide,))
    prediction = posterior.predict(stripes.images, draws=30, interval=0.8, seed=4)
    draws = [draw.logits(stripes.images) for draw in posterior.draws(30, seed=4)]
    each = torch.stack(draws).softmax(-1)
    mean = each.mean(0)
    torch.testing.assert_close(prediction.probs, mean)
    torch.testing.assert_close(prediction.lower, each.quantile(0.1, 0))
    torch.testing.assert_close(prediction.upper, each.quantile(0.9, 0))
    entropy = torch.distributions.Categorical(mean).entropy()
    torch.testing.assert_close(prediction.entropy, entropy)
    expected = entropy - torch.distributions.Categorical(each).entropy().mean(0)
    torch.testing.assert_close(prediction.mutual_information, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(prediction.labels, mean.argmax(-1))


def test_draws_differ_and_masks_are_applied(guide):
    first, second = (draw.weights for draw in Posterior((guide,)).draws(2, seed=0))
    assert not torch.equal(first["encoder.up"], second["encoder.up"])
    assert 0.2 < (first["encoder.up"] == 0).float().mean() < 0.6


def test_plug_in_is_one_plain_network(tiny_model, guide, stripes, monkeypatch):
    with torch.no_grad():
        guide.logit["encoder_up"].normal_()
    monkeypatch.setattr("pyro_isingvit.posterior.BATCH", 7)
    probs = Posterior((guide,)).predict_plug_in(stripes.images)
    network = tiny_model.network
    with torch.no_grad():
        for site in tiny_model.sites:
            network.get_parameter(site.name).copy_(guide.loc[site.key] * (guide.logit[site.key] >= 0))
        expected = network(stripes.images).softmax(-1)
    torch.testing.assert_close(probs, expected)


@pytest.mark.parametrize("truth", [0.3, 1.0, 2.5])
def test_the_best_scale_is_found(tiny_model, guide, stripes, truth, monkeypatch):
    """Labels drawn at one scale; all draws in memory, and a fine grid."""
    monkeypatch.setattr("pyro_isingvit.posterior.BATCH", 7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        guide.loc["classifier_out"].mul_(12)
        tiny_model.network.classifier.out_bias.copy_(torch.tensor([-1.0, 0.0, 1.5]))
    images = torch.rand(400, 1, 4, 4, generator=generator)
    posterior = Posterior((guide,))
    said = replace(posterior, logit_scale=truth).predict(images, 20).probs
    drawn = Images(images, said.multinomial(1, generator=generator).squeeze(-1), 3)
    draws = [draw.logits(images) for draw in posterior.draws(20)]
    log_scales = torch.linspace(-2.7, 1.3, 300, dtype=torch.float64)
    each = torch.stack(draws).double()
    likelihood = torch.stack(
        [(s.exp() * each).softmax(-1).mean(0)[torch.arange(400), drawn.labels].log().sum() for s in log_scales]
    )
    best = log_scales[(likelihood - 4 * log_scales.abs()).argmax()].exp()
    assert abs(float(best) - 1) < 0.3 if truth == 1 else (float(best) - 1) * (truth - 1) > 0.1
    calibrated = posterior.calibrate(drawn)
    scale = calibrated.logit_scale
    assert scale == pytest.approx(float(best), rel=0.03)
    torch.testing.assert_close(calibrated.predict(images, 20).probs, (scale * torch.stack(draws)).softmax(-1).mean(0))


def test_given_probabilities_are_scaled_by_the_same_rule(tiny_model, guide, stripes):
    """Labels drawn from probabilities that were sharpened threefold; and a posterior of one draw."""
    logits = torch.randn(20000, 4)
    labels = torch.multinomial(logits.softmax(-1), 1).squeeze(-1)
    assert best_logit_scale((3 * logits).log_softmax(-1), labels) == pytest.approx(1 / 3, rel=0.05)
    with torch.no_grad():
        for site in tiny_model.sites:
            guide.log_scale[site.key].fill_(-30)
            guide.logit[site.key].fill_(30)
    said = Posterior((guide,)).predict(stripes.images, 1).probs.log()
    assert best_logit_scale(said, stripes.labels) == Posterior((guide,)).calibrate(stripes).logit_scale


def test_images_that_are_all_right_do_not_sharpen_without_end(tiny_model, guide, stripes):
    with torch.no_grad():
        tiny_model.network.classifier.out_bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    few = Images(stripes.images[:5], torch.zeros(5, dtype=torch.long), 3)
    assert 1 <= Posterior((guide,)).calibrate(few).logit_scale < 1.1


def test_what_cannot_be_calibrated_is_refused(tiny_model, guide, stripes):
    with pytest.raises(InputError, match="draws=0"):
        Posterior((guide,)).calibrate(stripes, draws=0)
    with pytest.raises(InputError, match=r"held_out\.classes=9: the network has 3"):
        Posterior((guide,)).calibrate(Images(stripes.images, stripes.labels + 6, 9))
    with torch.no_grad():
        guide.loc["classifier_out"].fill_(float("nan"))
    with pyro.validation_enabled(False), pytest.raises(TrainingError, match="no finite NLL"):
        Posterior((guide,)).calibrate(stripes)


def test_modes_randomness_and_gradients_are_left_as_they_were(tiny_model, guide, stripes):
    guide.train()
    state = torch.get_rng_state()
    prediction = Posterior((guide,)).predict(stripes.images, draws=2)
    assert guide.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not prediction.probs.requires_grad


@pytest.mark.parametrize(("options", "message"), [({"draws": 0}, "draws=0"), ({"interval": 1.0}, "interval=1.0")])
def test_refusals(tiny_model, guide, stripes, options, message):
    with pytest.raises(InputError, match=message):
        Posterior((guide,)).predict(stripes.images, **options)
