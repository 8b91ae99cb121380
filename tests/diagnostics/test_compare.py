"""Comparison of priors and sensitivities: paired differences by hand, and a conjugate case in closed form."""

import math

import pytest
import torch

from pyro_isingvit import (
    FitConfig,
    Images,
    IndependentSpikeSlab,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
    ViT,
)
from pyro_isingvit.diagnostics import compare_priors, power_sensitivity
from pyro_isingvit.guides import PointEstimate
from pyro_isingvit.models.priors import Flat
from pyro_isingvit.scores import nll
from tests.conftest import QUICK, TINY


def guide_with(make, family=LikelihoodGuided):
    network = ViT(TINY)
    return family(IsingViT(network, make(network.weight_sites())))


def test_priors_are_compared_on_the_same_images(stripes):
    held_out = Images(stripes.images.flip(0), stripes.labels.flip(0), 3)
    guides = {
        "dense": guide_with(lambda sites: IndependentSpikeSlab(sites, inclusion=0.9)),
        "sparse": guide_with(lambda sites: IndependentSpikeSlab(sites, inclusion=0.001)),
        "flat": guide_with(Flat, PointEstimate),
    }
    found = compare_priors(guides, stripes, held_out, config=FitConfig(**QUICK | {"steps": 80}), progress=False)
    table = found.table.set_index("prior")
    assert list(table["nll"]) == sorted(table["nll"])
    best = found.table["prior"][0]
    assert (table.loc[best, "difference"], table.loc[best, "se"]) == (0, 0)
    probs = {name: result.posterior.predict(held_out.images, 50).probs for name, result in found.results.items()}
    for name in guides:
        gaps = nll(probs[name], held_out.labels).double() - nll(probs[best], held_out.labels).double()
        assert table.loc[name, "difference"] == pytest.approx(float(gaps.mean()), abs=1e-6)
        assert table.loc[name, "se"] == pytest.approx(float(gaps.std()) / 60**0.5, abs=1e-6)
    assert table.loc["sparse", "kept"] < table.loc["dense", "kept"]
    assert math.isnan(table.loc["flat", "kept"])
    assert math.isnan(table.loc["dense", "elpd"]) == (table.loc["dense", "k_hat"] > 0.7)


def test_too_few_priors_are_refused(stripes):
    guide = guide_with(IndependentSpikeSlab)
    with pytest.raises(InputError, match=r"guides=\['one'\]: give two or more by name"):
        compare_priors({"one": guide}, stripes, stripes)
    with pytest.raises(InputError, match="two have the same model"):
        compare_priors({"one": guide, "two": MeanField(guide.model)}, stripes, stripes)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_sensitivity_to_the_prior_is_that_of_a_bernoulli(stripes, share):
    """Masks alone, at their prior: the mean of n masks has the closed-form derivative n p (1 - p) log(p / (1 - p)).

    The weights are normal under guide and prior alike and have nothing to do with the masks, so that they add noise of
    which the standard error knows.
    """
    network = ViT(TINY)
    prior = IndependentSpikeSlab(network.weight_sites(), inclusion=share)
    guide = MeanField(IsingViT(network, prior, num_data=60), initial_logit=math.log(share / (1 - share)))
    table = power_sensitivity(Posterior.of(guide), stripes, draws=300).set_index("quantity")
    masks = sum(site.numel for site in network.weight_sites())
    deviation = (share * (1 - share) / masks) ** 0.5
    assert table.loc["kept", "mean"] == pytest.approx(share, abs=4 * deviation / 300**0.5)
    assert table.loc["kept", "sd"] == pytest.approx(deviation, rel=0.2)
    # A dropped weight has no density, a kept one has that of the slab: on average -1/2 log(2 pi) - log S - w^2 / 2 S^2.
    slab = (
        sum(
            site.numel * float(prior.slab(site).log_prob(guide.slab(site).sample()).double().mean())
            for site in network.weight_sites()
        )
        / masks
    )
    log_odds = math.log(share / (1 - share)) + slab
    expected = math.log(2) * share * (1 - share) * log_odds / deviation
    error = table.loc["kept", "prior_se"]
    assert table.loc["kept", "prior"] == pytest.approx(expected, abs=4 * error)
    assert error < 1.5


def test_sensitivity_names_what_it_is_of(stripes, tiny_network):
    guide = LikelihoodGuided(IsingViT(tiny_network, IsingSpikeSlab(tiny_network.weight_sites()), num_data=60))
    table = power_sensitivity(Posterior.of(guide), stripes, draws=50)
    assert list(table)[:3] == ["quantity", "mean", "sd"]
    assert {"kept", "kept patch_embed", "nll", "entropy"} <= set(table["quantity"])
    with pytest.raises(InputError, match="draws=49: covariances take at least 50"):
        power_sensitivity(Posterior.of(guide), stripes, draws=49)


def test_a_network_that_fits_is_held_up_by_the_likelihood(stripes):
    """NLL and log-likelihood of the same images are the same number but for a factor."""
    guide = guide_with(IndependentSpikeSlab, MeanField)
    guide.model.num_data = 60
    table = power_sensitivity(Posterior.of(guide), stripes, draws=100).set_index("quantity")
    sd = table.loc["nll", "sd"]
    assert table.loc["nll", "likelihood"] == pytest.approx(-math.log(2) * 60 * sd, rel=1e-4)


def test_log_densities_of_a_draw(tiny_model, stripes):
    draw = next(iter(Posterior.of(LikelihoodGuided(tiny_model)).draws(1)))
    expected = tiny_model.prior.interaction.energy(draw.masks)
    for site in tiny_model.sites:
        mask = draw.masks[site.name]
        expected = expected + tiny_model.prior.mask(site).log_prob(mask)
        expected = expected + tiny_model.prior.weight(site, mask).log_prob(draw.weights[site.name])
    assert draw.log_prior == pytest.approx(float(expected), rel=1e-4)
    assert torch.isfinite(torch.tensor(draw.log_ratio))
