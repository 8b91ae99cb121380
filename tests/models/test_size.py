"""How many weights priors keep: against exact sums, and numbers that cannot be."""

import pytest
import torch

from pyro_isingvit import FeatureSpikeSlab, IndependentSpikeSlab, InputError, IsingSpikeSlab, StructuredSpikeSlab
from pyro_isingvit.couplings import Coupling
from pyro_isingvit.diagnostics import plots
from pyro_isingvit.interactions import CouplingGraph
from pyro_isingvit.models.priors import Flat
from pyro_isingvit.models.priors.size import numbers_kept
from pyro_isingvit.network import WeightSite


def small(units=3, width=2):
    """Two sites with ``2 * units * width`` masks, which share units."""
    first = WeightSite("first", (units, width), ("unit", "x"), ("x",), ("unit",))
    second = WeightSite("second", (width, units), ("y", "unit"), ("unit",), ("y",))
    graph = CouplingGraph([first, second], [Coupling("first", "second", ("unit",))])
    return {"sites": [first, second], "couplings": graph}


def test_without_an_interaction_it_is_the_share(tiny_network):
    sites = tiny_network.weight_sites()
    total = sum(site.numel for site in sites)
    prior = IndependentSpikeSlab.expecting(sites, weights=total / 8, slab_scale=2.0)
    assert (prior.inclusion, prior.slab_scale) == (0.125, 2.0)
    features = FeatureSpikeSlab.expecting(sites, units=1)
    assert features.inclusion == 1 / 4  # patches of 2 x 2 pixels


@pytest.mark.parametrize("weights", [2.0, 6.0, 10.0])
def test_with_an_interaction_it_is_exact_for_few_masks(weights):
    prior = IsingSpikeSlab.expecting(**small(), weights=weights, coupling=0.8)
    # The mean of the 4,000 draws that the search saw is known to a 63rd of a standard deviation, which is below 6.
    assert float(prior.ising().marginals().sum()) == pytest.approx(weights, abs=0.3)
    alone = weights / 12
    assert (prior.inclusion > alone) == (alone < 0.5)  # neighbours pull towards the majority


def test_draws_of_many_masks_have_the_number_too():
    prior = IsingSpikeSlab.expecting(**small(20, 5), weights=60, coupling=0.5)
    kept = numbers_kept(prior, 60, seed=3)
    assert kept.shape == (60,)
    assert float(kept.mean()) == pytest.approx(60, rel=0.15)  # two means of draws from a chain
    assert torch.equal(kept, numbers_kept(prior, 60, seed=3))


def test_units_are_masks_and_weights_share_them(tiny_network):
    sites = tiny_network.weight_sites()
    prior = StructuredSpikeSlab(sites, inclusion=0.999, coupling=0.0)
    masks = sum(prior.mask(site).event_shape.numel() for site in sites)
    assert float(numbers_kept(prior, 50, units=True).mean()) == pytest.approx(masks, rel=0.01)
    assert float(numbers_kept(prior, 50).mean()) == pytest.approx(sum(site.numel for site in sites), rel=0.01)


def test_a_picture_of_the_numbers():
    ax = plots.plot_prior_size(IsingSpikeSlab(**small(), coupling=0.8), draws=500)
    assert "12" in ax.get_xlabel()
    heights = [patch.get_height() for patch in ax.patches]
    assert sum(heights) == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "weights=None and units=None: give one of them"),
        ({"weights": 3, "units": 2}, "weights=3 and units=2: give one of them"),
        ({"weights": 0}, "weights=0: lies between 0 and 12, the number of weights with masks"),
        ({"units": 12}, "units=12: lies between 0 and 12, the number of units with masks"),
        ({"weights": "many"}, "weights='many': lies between"),
        ({"weights": 3, "inclusion": 0.1}, "inclusion=0.1: follows from the expected number; leave it out"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        IsingSpikeSlab.expecting(**small(), **options)


def test_a_jump_is_named():
    with pytest.raises(InputError, match=r"the expected number jumps .*; lower the coupling"):
        IsingSpikeSlab.expecting(**small(1, 40), weights=28, coupling=10.0)  # all masks share one unit


def test_a_prior_without_masks_has_no_number(tiny_network):
    with pytest.raises(InputError, match="Flat: has no masks"):
        numbers_kept(Flat(tiny_network.weight_sites()))


class PixelsFirst(IndependentSpikeSlab):
    """Weights that read pixels have a probability of their own."""

    def inclusion_of(self, site):
        return 0.8 if site.name == "patch_embed" else super().inclusion_of(site)


def test_sites_with_a_probability_of_their_own_count(tiny_network):
    sites = tiny_network.weight_sites()
    own = next(site.numel for site in sites if site.name == "patch_embed")
    total = sum(site.numel for site in sites)
    wanted = 0.8 * own + 0.05 * (total - own)
    assert PixelsFirst.expecting(sites, weights=wanted).inclusion == pytest.approx(0.05, rel=0.01)
    with pytest.raises(InputError, match=r"weights=2: cannot be reached.* of PixelsFirst .* keep 13 at least and"):
        PixelsFirst.expecting(sites, weights=2)
