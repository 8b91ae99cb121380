"""The coupling graph of a ViT against a list of all pairs, written out from its definition."""

import itertools

import pytest
import torch

from pyro_isingvit import (
    Coupling,
    CouplingGraph,
    InputError,
    IsingSpikeSlab,
    ViT,
    ViTConfig,
)
from pyro_isingvit.couplings import VIT_COUPLINGS

SMALL = ViTConfig(image_size=4, patch_size=2, classes=2, dim=4, depth=2, heads=2, mlp_ratio=1, classifier_hidden=2)


@pytest.fixture
def sites():
    return ViT(SMALL).weight_sites()


def layers_of(layers, depth):
    """The blocks that take part, in order."""
    if layers is None:
        return list(range(depth))
    return list(range(depth))[layers] if isinstance(layers, slice) else [range(depth)[layers]]


def pairs(coupling, sites):
    """(index of first, index of second) of every pair of weights that a coupling joins at a unit, with its factor.

    Straight from the definition: the pair's factor is strength * min(n_A, n_B) / (n_A * n_B), n counting the
    weights of a tensor at the unit.
    """
    first, second = sites[coupling.first], sites[coupling.second]

    def at_units(site, layers):
        table = {}
        for index in itertools.product(*map(range, site.shape)):
            place = dict(zip(site.dims, index, strict=True))
            if "layer" in place and layers is not None:
                chosen = layers_of(layers, site.shape[0])
                if place["layer"] not in chosen:
                    continue
                place["layer"] = chosen.index(place["layer"])
            table.setdefault(tuple(place[u] for u in coupling.units), []).append(index)
        return table

    a, b = at_units(first, coupling.first_layers), at_units(second, coupling.second_layers)
    for unit in a:
        n_a, n_b = len(a[unit]), len(b[unit])
        for i, j in itertools.product(a[unit], b[unit]):
            yield i, j, coupling.strength * min(n_a, n_b) / (n_a * n_b)


def test_energy_and_local_fields_equal_the_list_of_pairs(sites):
    graph = CouplingGraph(sites, VIT_COUPLINGS)
    by_name = {site.name: site for site in sites}
    masks = {site.name: torch.bernoulli(torch.full(site.shape, 0.5)).double() for site in sites}
    spins = {name: (2 * mask - 1).tolist() for name, mask in masks.items()}
    fields = {name: torch.zeros_like(mask) for name, mask in masks.items()}

    def spin(name, index):
        value = spins[name]
        for i in index:
            value = value[i]
        return value

    energy, joined = 0.0, 0
    for coupling in VIT_COUPLINGS:
        for i, j, factor in pairs(coupling, by_name):
            energy += factor * spin(coupling.first, i) * spin(coupling.second, j)
            fields[coupling.first][i] += 2 * factor * spin(coupling.second, j)
            fields[coupling.second][j] += 2 * factor * spin(coupling.first, i)
            joined += 1
    assert joined > 900
    assert graph.energy(masks).item() == pytest.approx(energy)
    ising = graph.ising({name: torch.zeros_like(mask) for name, mask in masks.items()})
    torch.testing.assert_close(ising.local_field(graph.join(masks)), graph.join(fields))


@pytest.mark.parametrize("coupling", VIT_COUPLINGS, ids=lambda c: c.name)
def test_local_field_of_a_coupling_is_bounded_by_twice_its_strength(sites, coupling):
    graph = CouplingGraph(sites, [coupling]).rescaled(1.5)
    zeros = {site.name: torch.zeros(site.shape) for site in sites}
    pull = graph.ising(zeros).local_field(graph.join({name: torch.ones_like(z) for name, z in zeros.items()}))
    assert pull.max().item() == pytest.approx(2 * 1.5)


def test_every_weight_but_none_twice_is_coupled(sites):
    graph = CouplingGraph(sites, VIT_COUPLINGS)
    zeros = {site.name: torch.zeros(site.shape) for site in sites}
    pull = graph.ising(zeros).local_field(graph.join({name: torch.ones_like(z) for name, z in zeros.items()}))
    assert (pull > 0).all()


def test_batches_of_masks(sites):
    graph = CouplingGraph(sites, VIT_COUPLINGS)
    masks = {site.name: torch.bernoulli(torch.full((3, *site.shape), 0.5)) for site in sites}
    each = [graph.energy({name: mask[i] for name, mask in masks.items()}) for i in range(3)]
    torch.testing.assert_close(graph.energy(masks), torch.stack(each))


def test_a_user_adds_removes_and_rescales(sites):
    graph = CouplingGraph(sites, VIT_COUPLINGS)
    masks = {site.name: torch.bernoulli(torch.full(site.shape, 0.5)) for site in sites}
    one = CouplingGraph(sites, [Coupling("encoder.up", "encoder.down", ("layer", "hidden"))])
    without = graph.without("encoder.down", "encoder.up")
    assert len(without.couplings) == len(graph.couplings) - 1
    torch.testing.assert_close(without.energy(masks) + one.energy(masks), graph.energy(masks))
    torch.testing.assert_close(without.adding(*one.couplings).energy(masks), graph.energy(masks))
    torch.testing.assert_close(graph.rescaled(0.5).energy(masks), 0.5 * graph.energy(masks))
    partly = graph.rescaled(3.0, "encoder.up", "encoder.down")
    torch.testing.assert_close(partly.energy(masks), graph.energy(masks) + 2 * one.energy(masks))
    assert CouplingGraph(sites, []).energy(masks).item() == 0


def test_a_single_block_has_no_coupling_to_the_next():
    sites = ViT(ViTConfig(image_size=4, patch_size=2, dim=4, depth=1, heads=1, mlp_ratio=1)).weight_sites()
    graph = CouplingGraph(sites, VIT_COUPLINGS)
    next_block = [c for c in VIT_COUPLINGS if isinstance(c.first_layers, slice)]
    assert next_block
    masks = {site.name: torch.ones(site.shape) for site in sites}
    assert CouplingGraph(sites, next_block).energy(masks).item() == 0
    assert graph.energy(masks).item() > 0


@pytest.mark.parametrize(
    ("coupling", "message"),
    [
        (Coupling("encoder.up", "encoder.donw", ("hidden",)), "no site 'encoder.donw'"),
        (Coupling("encoder.up", "encoder.up", ("hidden",)), "joins a site with itself"),
        (Coupling("encoder.up", "encoder.down", ("layer", "head")), "has no {'head'}"),
        (Coupling("encoder.up", "encoder.down", ("layer", "hidden"), 1.0, slice(1), None), "choose blocks that match"),
        (Coupling("patch_embed", "encoder.up", ("layer", "dim")), "has no {'layer'}"),
        (Coupling("patch_embed", "encoder.up", ("dim",), 1.0, None, 7), "block 7 of encoder.up, which has 2"),
        (Coupling("patch_embed", "encoder.up", ("dim",), 1.0, 0, 0), "no blocks to choose from"),
    ],
)
def test_impossible_couplings_are_refused(sites, coupling, message):
    with pytest.raises(InputError, match=message):
        CouplingGraph(sites, [coupling])


def test_removing_what_is_not_there_is_refused(sites):
    with pytest.raises(InputError, match=r"no coupling of 'encoder\.up' and 'classifier\.out'"):
        CouplingGraph(sites, VIT_COUPLINGS).without("encoder.up", "classifier.out")


def test_gibbs_draws_of_the_prior_differ_from_the_base_measure():
    sites = ViT(SMALL).weight_sites()
    prior = IsingSpikeSlab(sites, inclusion=0.4, coupling=0.5)
    density = prior.ising(sweeps=50).sample((40,)).mean().item()
    mean_field = prior.ising().mean_field().mean().item()
    assert density < 0.35
    assert density == pytest.approx(mean_field, abs=0.06)


def test_two_phases_are_warned_of(sites):
    with pytest.warns(UserWarning, match="coupling=3.0 with inclusion=0.2: the prior has two phases"):
        IsingSpikeSlab(sites, coupling=3.0)


def test_the_table_of_units_gives_the_couplings_of_a_vit():
    """Spelled out once more: within units, then from each writer of the residual stream to the next readers."""
    assert [coupling.name for coupling in VIT_COUPLINGS] == [
        "encoder.up~encoder.down",
        "encoder.value~encoder.out",
        "encoder.query~encoder.key",
        "classifier.hidden~classifier.out",
        "patch_embed~encoder.query[0]",
        "patch_embed~encoder.key[0]",
        "patch_embed~encoder.value[0]",
        "encoder.out~encoder.up",
        "encoder.down[:-1]~encoder.query[1:]",
        "encoder.down[:-1]~encoder.key[1:]",
        "encoder.down[:-1]~encoder.value[1:]",
        "encoder.down[-1]~classifier.hidden",
    ]
    units = {coupling.name: coupling.units for coupling in VIT_COUPLINGS}
    assert units["encoder.value~encoder.out"] == ("layer", "head", "head_dim")
    assert units["patch_embed~encoder.query[0]"] == units["encoder.down[-1]~classifier.hidden"] == ("dim",)
    assert units["encoder.out~encoder.up"] == units["encoder.down[:-1]~encoder.key[1:]"] == ("layer", "dim")
