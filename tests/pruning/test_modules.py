"""Modules that are cut: equal to the masked network, saved, and read again."""

import pytest
import torch
from torch import nn

from pyro_isingvit import (
    FitConfig,
    Images,
    InputError,
    IsingNetwork,
    IsingSpikeSlab,
    LikelihoodGuided,
    Posterior,
    StructuredSpikeSlab,
    adapt,
    fit,
)
from pyro_isingvit.pruning import load_module, prune, prune_module
from tests.conftest import QUICK, quick_fit
from tests.test_adapted import Packed, Residual


def fitted(make, around="zero", **standard):
    torch.manual_seed(0)
    images = Images(torch.rand(40, 3, 8, 8), torch.arange(40) % 4, 5 if make is Residual else 4)
    network = adapt(make(), images.images[:1], around=around, **standard)
    guide = LikelihoodGuided(IsingNetwork(network, IsingSpikeSlab(network.weight_sites(), couplings=network.couplings)))
    posterior = fit(guide, images, config=FitConfig(**QUICK | {"temperature": 0.01}), progress=False).posterior
    chosen = posterior.guide
    with torch.no_grad():  # masks that leave something to cut: every second unit is read by nothing, or has no weights
        for name, logit in chosen.logit.items():
            logit.fill_(8.0)
            if name in ("b", "back"):
                logit[:, ::2] = -8.0
            if name in ("own", "a", "gate_part0"):
                logit[1] = -8.0
    return posterior, images.images


@pytest.mark.parametrize(("make", "layer", "cut"), [(Residual, "a", 3), (Packed, "gate", 0)])
def test_what_nothing_reads_is_cut_and_the_rest_computes_the_same(make, layer, cut, tmp_path):
    posterior, images = fitted(make)
    small = prune_module(posterior, images)
    assert type(small.module) is make
    units = small.units.set_index("layer")
    assert units.loc[layer, "cut"] == cut
    with torch.no_grad():
        torch.testing.assert_close(small.module(images), posterior.network()(images), rtol=1e-5, atol=1e-5)
        small.save(tmp_path / "small")
        again = load_module(tmp_path / "small", make(), images)
        torch.testing.assert_close(again(images), small.network(images))
        exported = torch.export.export(small.module, (images[:2],)).module()
        torch.testing.assert_close(exported(images[:2]), small.module(images[:2]))


def test_units_with_one_mask_are_cut_whole():
    torch.manual_seed(0)
    images = Images(torch.rand(40, 3, 8, 8), torch.arange(40) % 4, 5)
    network = adapt(Residual(), images.images[:1])
    prior = StructuredSpikeSlab(network.weight_sites(), network.unit_levels, couplings=network.couplings)
    guide = LikelihoodGuided(IsingNetwork(network, prior))
    posterior = fit(guide, images, config=FitConfig(**QUICK | {"temperature": 0.01}), progress=False).posterior
    logit = posterior.guide.logit
    assert {name: tuple(logit[name].shape) for name in ("first", "a", "b")} == {
        "first": (4, 1, 1, 1),
        "a": (1, 4, 1, 1),
        "b": (1, 6, 1, 1),
    }
    with torch.no_grad():
        for value in logit.values():
            value.fill_(8.0)
        logit["b"][:, :2] = -8.0
    small = prune_module(posterior, images.images)
    assert small.units.set_index("layer")["cut"]["a"] == 2
    with torch.no_grad():
        torch.testing.assert_close(
            small.network(images.images), posterior.network()(images.images), rtol=1e-5, atol=1e-5
        )


class Chain(nn.Module):
    """Two convolutions and a linear map, one behind the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.out = nn.Linear(5, 4)

    def forward(self, x):
        return self.out(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("bias", "cut", "why"), [(-1.0, 2, ""), (1.0, 0, "without weights, but a layer that cannot take their constant")]
)
def test_a_constant_of_zero_is_cut_before_a_convolution_too(bias, cut, why):
    """Any other is not, as it ends at the edge of the image."""
    torch.manual_seed(0)
    images = torch.rand(10, 3, 8, 8)
    network = adapt(Chain(), images[:1])
    guide = LikelihoodGuided(IsingNetwork(network, IsingSpikeSlab(network.weight_sites(), couplings=network.couplings)))
    with torch.no_grad():
        network.original.first.bias.fill_(bias)
        guide.logit["first"][:2] = -8.0
    posterior = Posterior.of(guide)
    small = prune_module(posterior, images)
    row = small.units.set_index("layer").loc["first"]
    assert (row["cut"], row["kept_because"].startswith(why)) == (cut, True)
    assert bool(row["kept_because"]) == bool(why)
    with torch.no_grad():
        torch.testing.assert_close(small.network(images), posterior.network()(images), rtol=1e-5, atol=1e-5)


def test_a_network_that_is_read_again_standardises_its_images(tmp_path):
    posterior, images = fitted(Residual, mean=(0.2, 0.4, 0.6), std=(0.5, 0.3, 0.4))
    prune_module(posterior, images).save(tmp_path)
    with torch.no_grad():
        again = load_module(tmp_path, Residual(), images)
        torch.testing.assert_close(again(images), posterior.network()(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"module=Linear: not what .*pruned\.safetensors was cut from"):
        load_module(tmp_path, torch.nn.Linear(3, 3), images)


def test_why_units_are_kept_is_said():
    small = prune_module(*fitted(Packed))
    assert set(small.units["kept_because"]) > {"outputs of the network"}
    assert small.weights < sum(p.numel() for p in Packed().parameters())


def test_what_cannot_be_cut_is_refused_by_name(stripes, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="network=ViT: only networks that adapt has made"):
        prune_module(quick_fit(stripes).posterior, stripes.images)
    posterior, images = fitted(Packed, "pretrained")
    with pytest.raises(InputError, match="around='pretrained': dropped weights are what they were"):
        prune_module(posterior, images)
    posterior, images = fitted(Packed)
    with pytest.raises(InputError, match=r"example of shape \(3, 8, 8\): give \(batch, 3, 8, 8\), two images"):
        prune_module(posterior, images[0])
    with pytest.raises(InputError, match=r"a mixture of 2, and one module is cut; cut one of posterior\.members"):
        prune_module(Posterior(posterior.guides * 2), images)
    with pytest.raises(InputError, match="network=Adapted: only a ViT can be cut; prune_module"):
        prune(posterior)
    with pytest.raises(InputError, match=r"no pruned\.safetensors there"):
        load_module(tmp_path, Packed(), images)
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(InputError, match="needs torch-pruning"):
        prune_module(fitted(Residual)[0], images)
