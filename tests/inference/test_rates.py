"""Learning rates of parts of a network."""

import pytest
import torch
from torch import nn

import pyro_isingvit as iv
from tests.conftest import QUICK, pair


def first_step(stripes, guide, rates):
    """How far each parameter of guide and network moves in one step of Adam, whose size is the learning rate."""
    both = *guide.named_parameters(), *guide.model.named_parameters()
    before = {name: p.detach().clone() for name, p in both if p.requires_grad}
    config = iv.FitConfig(**QUICK | {"steps": 1, "pilot": 1.0, "learning_rate": 1e-3}, rates=rates)
    iv.fit(guide, stripes, config=config, progress=False)
    after = dict((*guide.named_parameters(), *guide.model.named_parameters()))
    return {name: float((after[name].detach() - old).abs().max()) for name, old in before.items()}


def test_steps_are_as_long_as_the_rates_say(stripes):
    plain = first_step(stripes, pair()[1], {})
    own = first_step(stripes, pair()[1], {"classifier.out*": 10.0, "encoder.*": 0.5})
    assert {name for name in plain if plain[name] > 0} == {name for name in own if own[name] > 0}
    for name, length in plain.items():
        if length > 0 and not name.endswith("key_bias"):  # whose gradient is rounding alone
            key = name.removeprefix("network.")
            factor = 10.0 if "classifier" in key and "out" in key else 0.5 if "encoder" in key else 1.0
            assert own[name] == pytest.approx(factor * length, rel=0.02), name


def test_names_are_those_of_the_adapted_module(stripes):
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(0)
    network = iv.adapt(module, stripes.images[:1])
    guide = iv.LikelihoodGuided(iv.IsingNetwork(network, iv.IndependentSpikeSlab(network.weight_sites())))
    moved = first_step(stripes, guide, {"3*": 4.0})
    rate = moved["loc.1"]
    assert moved["loc.3"] == pytest.approx(4 * rate, rel=0.02)
    assert moved["network.original.3.bias"] == pytest.approx(4 * rate, rel=0.02)
    assert moved["network.original.1.bias"] == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"heads*": 2.0}, r"rates: 'heads\*' matches nothing that is trained, .*; there are \['classifier.hidden'"),
        ({"classifier*": 0.0}, r"rates\.classifier\*=0.0: .*greater than 0"),
    ],
)
def test_wrong_rates(rates, message, stripes):
    with pytest.raises(iv.InputError, match=message):
        first_step(stripes, pair()[1], rates)
