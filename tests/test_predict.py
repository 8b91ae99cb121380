"""The streamed posterior predictive against the same draws held in memory."""

import importlib

import pytest
import torch

from pyro_isingvit import Images, InputError, LikelihoodGuided, predict, predict_plug_in
from pyro_isingvit.predict import calibrate, evaluating, posterior_draws


@pytest.fixture
def guide(tiny_model):
    return LikelihoodGuided(tiny_model, initial_logit=0.5, initial_scale=0.3)


def test_summaries_equal_those_of_all_draws(tiny_model, guide, stripes):
    prediction = predict(tiny_model, guide, stripes.images, draws=30, interval=0.8, batch_size=7, seed=4)
    with evaluating(tiny_model, guide):
        draws = [
            tiny_model.logits(stripes.images, draw.weights) for draw in posterior_draws(tiny_model, guide, 30, seed=4)
        ]
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


def test_draws_differ_and_masks_are_applied(tiny_model, guide):
    with evaluating(tiny_model, guide):
        first, second = (draw.weights for draw in posterior_draws(tiny_model, guide, 2, seed=0))
    assert not torch.equal(first["encoder.up"], second["encoder.up"])
    assert 0.2 < (first["encoder.up"] == 0).float().mean() < 0.6


def test_plug_in_is_one_plain_network(tiny_model, guide, stripes):
    with torch.no_grad():
        guide.logit["encoder_up"].normal_()
    probs = predict_plug_in(tiny_model, guide, stripes.images, batch_size=7)
    network = tiny_model.network
    with torch.no_grad():
        for site in tiny_model.sites:
            network.get_parameter(site.name).copy_(guide.loc[site.key] * (guide.logit[site.key] >= 0))
        expected = network(stripes.images).softmax(-1)
    torch.testing.assert_close(probs, expected)


def log_posterior_of_scales(model, guide, data, log_scales):
    """With all draws in memory."""
    model.logit_scale.fill_(1.0)
    with evaluating(model, guide):
        draws = [model.logits(data.images, draw.weights) for draw in posterior_draws(model, guide, 20, 0)]
    right, each = (torch.arange(len(data)), data.labels), torch.stack(draws).double()
    nlls = [-(s.exp() * each).softmax(-1).mean(0)[right].log().sum() for s in log_scales]
    return -torch.stack(nlls) - log_scales.square() / 2


@pytest.mark.parametrize("sureness", [0.3, 3.0])
def test_calibrate_finds_the_scale(tiny_model, guide, stripes, sureness, monkeypatch):
    monkeypatch.setattr(importlib.import_module("pyro_isingvit.predict"), "BATCH", 7)
    torch.manual_seed(0)
    with torch.no_grad():
        tiny_model.network.head.out_bias.normal_().mul_(sureness)
        guide.loc["head_out"].mul_(sureness)
    drawn = Images(stripes.images, predict(tiny_model, guide, stripes.images).probs.multinomial(1).squeeze(-1), 3)
    log_scales = torch.linspace(-2.77, 1.38, 400, dtype=torch.float64)
    best = log_scales[log_posterior_of_scales(tiny_model, guide, drawn, log_scales).argmax()]
    scale = calibrate(tiny_model, guide, drawn)
    assert scale == tiny_model.logit_scale == pytest.approx(float(best.exp()), rel=0.03)
    probs = predict(tiny_model, guide, stripes.images, 20).probs
    plain = tiny_model.logit_scale.clone()
    assert calibrate(tiny_model, guide, drawn) == plain  # whatever it was
    tiny_model.logit_scale.fill_(1.0)
    assert not torch.allclose(probs, predict(tiny_model, guide, stripes.images, 20).probs, atol=1e-3)


def test_images_that_are_all_right_do_not_sharpen_without_end(tiny_model, guide, stripes):
    with torch.no_grad():
        tiny_model.network.head.out_bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    few = Images(stripes.images[:5], torch.zeros(5, dtype=torch.long), 3)
    assert calibrate(tiny_model, guide, few) < 1.1


def test_training_and_the_plug_in_network_know_the_scale(tiny_model, guide, stripes):
    with torch.no_grad():
        plain = tiny_model.logits(stripes.images, guide.mean_weights(guide.median_masks()))
        tiny_model.logit_scale.fill_(0.5)
        torch.testing.assert_close(predict_plug_in(tiny_model, guide, stripes.images), (0.5 * plain).softmax(-1))
    with pytest.raises(InputError, match="draws=0"):
        calibrate(tiny_model, guide, stripes, draws=0)


def test_modes_randomness_and_gradients_are_left_as_they_were(tiny_model, guide, stripes):
    guide.train()
    state = torch.get_rng_state()
    prediction = predict(tiny_model, guide, stripes.images, draws=2)
    assert guide.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not prediction.probs.requires_grad


@pytest.mark.parametrize(("options", "message"), [({"draws": 0}, "draws=0"), ({"interval": 1.0}, "interval=1.0")])
def test_refusals(tiny_model, guide, stripes, options, message):
    with pytest.raises(InputError, match=message):
        predict(tiny_model, guide, stripes.images, **options)
