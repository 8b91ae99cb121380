"""The streamed posterior predictive against the same draws held in memory."""

import pytest
import torch

from pyro_isingvit import InputError, LikelihoodGuided, predict, predict_plug_in
from pyro_isingvit.predict import evaluating, posterior_draws


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
