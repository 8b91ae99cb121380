"""A network without its dead parts is the same function, whatever is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_isingvit as iv
from pyro_isingvit.network.units import UNITS
from pyro_isingvit.pruning.silence import silence
from tests.pruning.networks import CONFIG, IMAGES, LEVEL_DIMS, PLAIN, WITH_STEM, WITH_TOKEN, network_of


def random_masks(network, level, share, seed):
    """Masks of a level: of single weights, or of whole units, each role with its own or all with the same."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for site in network.weight_sites():
        if level == "weight":
            masks[site.name] = (torch.rand(site.shape, generator=generator) < share).float()
        elif site.name in LEVEL_DIMS[level]:
            kept = {"layer", "head", LEVEL_DIMS[level][site.name]} if "layer" in site.dims else set(site.dims)
            kept = {LEVEL_DIMS[level][site.name]} if level in ("block", "patch", "classifier_hidden") else kept
            shape = [n if d in kept else 1 for n, d in zip(site.shape, site.dims, strict=True)]
            masks[site.name] = (torch.rand(shape, generator=generator) < share).float().expand(site.shape)
    return masks


def masked(network, masks):
    return {name: network.get_parameter(name) * mask for name, mask in masks.items()}


def depends_on_the_image(network, masks):
    embed, hidden, out = (
        network.get_parameter(name) * masks.get(name, torch.ones(1))
        for name in ("patch_embed", "classifier.hidden", "classifier.out")
    )
    return bool(embed.any()) and bool((hidden.bool().any(1) & out.bool().any(0)).any())


@pytest.mark.parametrize("level", ["weight", *LEVEL_DIMS])
@settings(max_examples=25, deadline=None)
@given(
    config=st.sampled_from([CONFIG, WITH_TOKEN, PLAIN, WITH_STEM]),
    share=st.sampled_from([0.05, 0.3, 0.6]),
    seed=st.integers(0, 10**6),
)
def test_the_cut_network_is_the_masked_one(level, config, share, seed):
    """Logits to 1e-5, for random masks at every level, with parts dead on one side or on both."""
    network = network_of(config, seed)
    weights = masked(network, random_masks(network, level, share, seed))
    if not depends_on_the_image(network, random_masks(network, level, share, seed)):
        with pytest.raises(iv.InputError, match="nothing is left of the network"):
            iv.pruning.shrink(network, weights)
        return
    small = iv.pruning.shrink(network, weights)
    expected = torch.func.functional_call(network, weights, (IMAGES,))
    assert (small(IMAGES) - expected).abs().max() < 1e-5
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in iv.pruning.shrink(network).parameters())


def test_dead_parts_are_gone():
    network = network_of(CONFIG, 0)
    weights = {name: value.detach().clone() for name, value in network.named_parameters()}
    weights["encoder.up"][0, 2:] = 0  # two of twelve units left in block 0
    weights["encoder.value"][1] = 0  # no attention in block 1
    weights["encoder.down"][1] = 0  # nor an MLP: the block is gone
    weights["encoder.key"][0, 1, 1:] = 0  # one unit of query and key left in head 1
    weights["encoder.query"][0, 0, 2:] = 0  # two units that ask all tokens the same become one
    weights["patch_embed"][:, 5:] = 0
    weights["classifier.out"][:, 3:] = 0
    small = iv.pruning.shrink(network, weights)
    attention, mlp = small.config.layers
    assert attention.heads == ((1, 3, 4), (1, 1, 4))
    assert mlp.hidden == 2
    assert small.config.patch_features == 5
    assert small.config.classifier_hidden == 3
    assert (small(IMAGES) - torch.func.functional_call(network, weights, (IMAGES,))).abs().max() < 1e-5


def test_a_network_without_blocks():
    """All that the blocks add is then a constant."""
    for config in (CONFIG, WITH_TOKEN, PLAIN):
        network = network_of(config, 1)
        weights = {name: torch.zeros_like(network.get_parameter(name)) for name in ("encoder.value", "encoder.down")}
        small = iv.pruning.shrink(network, weights)
        assert small.config.layers == ()
        assert (small(IMAGES) - torch.func.functional_call(network, weights, (IMAGES,))).abs().max() < 1e-5


def test_a_value_of_a_stem_leaves_what_a_plain_image_has():
    """At a token away from the border."""
    network = network_of(iv.ViTConfig(image_size=24, patch_size=8, dim=8, heads=2, stem="convolutions"), 5).double()
    plain = network.stem(torch.zeros(1, 1, 24, 24).double())[0, 8]
    assert plain.any()
    p = {name: value.detach() for name, value in network.named_parameters()}
    before = p["patch_embed"] @ plain + p["patch_embed_bias"]
    gone = torch.arange(len(plain)) % 3 > 0
    silence(p, UNITS["patch"], gone)
    assert not p["patch_embed"][:, gone].any()
    torch.testing.assert_close(p["patch_embed"] @ plain + p["patch_embed_bias"], before)
