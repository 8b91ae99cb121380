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
    with pytest.raises(InputError, match="two have the same network"):
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
    log_odds = math.log(share / (1 - share))
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


def test_a_doubled_prior_of_coupled_masks_is_that_of_a_sample(tiny_network, stripes):
    """The derivative against a finite difference of importance weights on the same draws."""
    guide = LikelihoodGuided(IsingViT(tiny_network, IsingSpikeSlab(tiny_network.weight_sites()), num_data=60))
    with torch.no_grad():
        for logit in guide.logit.values():
            logit.normal_()
    posterior = Posterior.of(guide)
    table = power_sensitivity(posterior, stripes, draws=80).set_index("quantity")
    kept, logs = [], []
    for draw in posterior.draws(80):
        masks, total = draw.masks, 0.0
        for site in guide.model.sites:
            total += float(guide.model.prior.mask(site).log_prob(masks[site.name]))
        logs.append(total + float(guide.model.prior.interaction.energy(masks)))
        kept.append(float(torch.cat([mask.flatten() for mask in masks.values()]).mean()))
    kept, logs, step = torch.tensor(kept).double(), torch.tensor(logs).double(), 1e-5
    means = [((sign * step * logs).softmax(0) * kept).sum() for sign in (1, -1)]
    expected = math.log(2) * (means[0] - means[1]) / (2 * step) / kept.std()
    assert table.loc["kept", "prior"] == pytest.approx(
        float(expected) * 80 / 79, rel=1e-3
    )  # of a covariance with n - 1


def test_models_may_not_share_a_network(stripes):
    network = ViT(TINY)
    models = [IsingViT(network, IndependentSpikeSlab(network.weight_sites())) for _ in range(2)]
    with pytest.raises(InputError, match="two have the same network"):
        compare_priors({str(k): MeanField(model) for k, model in enumerate(models)}, stripes, stripes)
    with pytest.raises(InputError, match=r"guides\['two'\]=IndependentSpikeSlab: give a guide"):
        compare_priors({"one": MeanField(models[0]), "two": models[0].prior}, stripes, stripes)
