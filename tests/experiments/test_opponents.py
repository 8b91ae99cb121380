"""Draws of the other libraries' posteriors are those that their papers define."""

import numpy as np
import pytest
import torch

from pyro_isingvit import InputError
from pyro_isingvit.data import Data
from pyro_isingvit.experiments import opponents
from pyro_isingvit.experiments.methods import Method, outcomes
from pyro_isingvit.experiments.opponents import SWAG_RANK, Moments

from .test_methods import config_of

MANY = 4000
"""Draws behind a moment; a standard deviation is then known to 1.1 %, and five of its standard errors are allowed."""


def vector_of(draw):
    return torch.cat([p.flatten() for p in draw.parameters.values()])


def test_swag_draws_have_the_moments_of_the_paper(tiny_network):
    moments, states = Moments(tiny_network), []
    for seed in range(SWAG_RANK + 5):
        generator = torch.Generator().manual_seed(seed)
        for p in tiny_network.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        moments.add()
        states.append(torch.cat([p.detach().flatten() for p in tiny_network.parameters()]).numpy())
    every = np.stack(states).astype(np.float64)
    running = np.cumsum(every, 0) / np.arange(1, len(every) + 1)[:, None]
    deviations = (every - running)[-SWAG_RANK:]
    variance = (every.var(0) + (deviations**2).sum(0) / (SWAG_RANK - 1)) / 2
    torch.manual_seed(0)
    draws = torch.stack([vector_of(moments.draw()) for _ in range(MANY)]).double().numpy()
    np.testing.assert_allclose(draws.std(0), variance**0.5, rtol=0.1)  # the largest of some hundred errors
    z = (draws.mean(0) - every.mean(0)) / (variance / MANY) ** 0.5
    assert np.abs(z).max() < 5
    first = np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]
    covariance = (deviations[:, 0] * deviations[:, 1]).sum() / (SWAG_RANK - 1) / 2
    assert first == pytest.approx(covariance / (variance[0] * variance[1]) ** 0.5, abs=5 / MANY**0.5)


@pytest.mark.parametrize("name", ["ivon", "laplace", "swag"])
def test_draws_depend_on_their_seed_alone(stripes, name):
    config = config_of(steps=20)
    candidate = next(getattr(opponents, name)(config, Data(stripes, stripes, stripes), False))
    first, again, other = ([vector_of(draw) for draw in candidate.draws(2, seed=seed)] for seed in (0, 0, 1))
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_the_last_layer_of_laplace_is_that_of_the_network(stripes):
    config = config_of(steps=20)
    data = Data(stripes, stripes, stripes)
    candidate = next(opponents.laplace(config, data, False))
    draws = list(candidate.draws(400, seed=0))
    network = draws[0].network
    mean = torch.stack([draw.parameters["classifier.out"] for draw in draws]).mean(0)
    spread = torch.stack([draw.parameters["classifier.out"] for draw in draws]).std(0)
    assert ((mean - network.classifier.out).abs() < 5 * spread / 20).all()
    # With the mean weights it is the deterministic network.
    whole = opponents.NetworkDraw(network, {}).logits(stripes.images)
    parts = next(iter(opponents._inputs_of_last_layer(network, stripes)))[0]
    torch.testing.assert_close(parts @ network.classifier.out.T + network.classifier.out_bias, whole)


def test_the_setting_is_chosen_on_validation_images(stripes, monkeypatch):
    monkeypatch.setattr(opponents, "SWAG_RATES", (0.2, 1e6))  # the second destroys the network
    config = config_of(steps=100)
    plain, scaled = outcomes(config, Method(name="swag"), Data(stripes, stripes, stripes), progress=False)
    assert plain.mark == scaled.mark == "learning rate 0.2 of the peak"


@pytest.mark.parametrize(("name", "package"), [("ivon", "ivon-opt"), ("laplace", "laplace-torch")])
def test_a_missing_package_is_named(stripes, monkeypatch, name, package):
    monkeypatch.setattr(opponents, "find_spec", lambda module: None)
    data = Data(stripes, stripes, stripes)
    with pytest.raises(InputError, match=rf"method {name}: needs {package}; pip install .*opponents"):
        next(outcomes(config_of(), Method(name=name), data, progress=False))
