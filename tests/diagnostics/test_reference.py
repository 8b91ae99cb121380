"""Agreement of chains, and distances from a reference, on samples made by hand."""

import numpy as np
import pytest
import torch

from pyro_isingvit import (
    CouplingGraph,
    Images,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Posterior,
)
from pyro_isingvit.diagnostics import against_reference, convergence, quantities, reference_data
from pyro_isingvit.diagnostics.arviz_adapter import arviz
from pyro_isingvit.inference.reference import Reference, sample_reference
from pyro_isingvit.testing import TwoLayers


def reference_of(posterior, images, chains=2, draws=200):
    """A "reference" of draws from an approximate posterior itself."""
    each = list(posterior.draws(chains * draws, seed=9))
    model = posterior.model

    def stacked(part):
        return {
            site.name: torch.stack([getattr(draw, part)[site.name] for draw in each]).view(chains, draws, *site.shape)
            for site in model.sites
        }

    logs = [draw.log_probs(images.images)[torch.arange(len(images)), images.labels] for draw in each]
    log_likelihood = torch.stack(logs).view(chains, draws, -1)
    return Reference(stacked("masks"), stacked("weights"), log_likelihood, torch.ones(chains), model)


@pytest.fixture
def images():
    return Images(torch.rand(30, 1, 1, 3), torch.arange(30) % 2, 2)


@pytest.fixture
def posterior(images):
    network = TwoLayers()
    prior = IsingSpikeSlab(network.weight_sites(), couplings=_no_couplings(network))
    guide = MeanField(IsingViT(network, prior, num_data=30), initial_logit=0.5, initial_scale=0.5)
    return Posterior.of(guide)


def _no_couplings(network):
    return CouplingGraph(network.weight_sites(), [])


def test_a_posterior_is_near_a_sample_of_itself(posterior, images):
    found = against_reference(posterior, reference_of(posterior, images), images, draws=400)
    # 400 draws of ten masks with probability .62: the mean absolute error is .8 * .49 / 20
    assert found["inclusion"] < 0.04
    assert found["features"] < 0.04
    assert found["variation"] < 0.03
    assert found["nll"] == pytest.approx(found["reference_nll"], abs=0.02)
    assert found["coverage"] == pytest.approx(0.9, abs=0.03)


def test_a_posterior_that_is_too_sure_covers_less(posterior, images):
    reference = reference_of(posterior, images)
    network = TwoLayers()
    sure = MeanField(IsingViT(network, posterior.model.prior, num_data=30), initial_logit=8.0, initial_scale=0.05)
    found = against_reference(Posterior.of(sure), reference, images)
    assert found["coverage"] < 0.5
    assert found["inclusion"] == pytest.approx(1 - 0.622, abs=0.05)  # sigmoid(0.5)


def test_chains_that_agree_and_chains_that_do_not(posterior, images):
    reference = reference_of(posterior, images)
    table = convergence(reference).set_index("quantity")
    assert list(table.index) == ["log_likelihood", "kept", "inclusion 0", "inclusion 1", "inclusion 2"]
    assert (table["r_hat"] < 1.05).all()
    assert (table["ess"] > 200).all()
    reference.log_likelihood[1] -= 100
    reference.masks["first"][:, :, :, 2] = 1
    table = convergence(reference).set_index("quantity")
    assert table.loc["log_likelihood", "r_hat"] > 1.5
    assert np.isnan(table.loc["inclusion 2", "r_hat"])  # it never changes
    assert table.loc["inclusion 2", "mean"] == 1


def test_quantities_do_not_change_when_hidden_units_swap_places(posterior, images):
    reference = reference_of(posterior, images)
    swapped = Reference(
        {"first": reference.masks["first"].flip(2), "second": reference.masks["second"].flip(3)},
        reference.weights,
        reference.log_likelihood,
        reference.acceptance,
        reference.model,
    )
    before, after = quantities(reference), quantities(swapped)
    for name in ("log_likelihood", "kept", "inclusion"):
        np.testing.assert_allclose(before[name], after[name])


def test_arviz_reads_the_chains(posterior, images):
    data = reference_data(reference_of(posterior, images, draws=20))
    assert dict(data["posterior"]["first.mask"].sizes) == {"chain": 2, "draw": 20, "hidden": 2, "pixel": 3}
    assert data["log_likelihood"]["label"].shape == (2, 20, 30)
    assert float(arviz().rhat(data["posterior"]["kept"].to_numpy())) < 1.2


def test_a_sampled_reference_from_end_to_end(images):
    network = TwoLayers()
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites(), couplings=_no_couplings(network)), num_data=30)
    reference = sample_reference(model, images, draws=30, warmup=10, chains=2, progress=False)
    guide = LikelihoodGuided(model)
    found = against_reference(Posterior.of(guide), reference, images)
    assert all(np.isfinite(value) for value in found.values())
    with pytest.raises(InputError, match="1 chains of 30 draws; agreement takes at least 2 of 4"):
        convergence(sample_reference(model, images, draws=30, warmup=1, chains=1, progress=False))


def test_another_model_is_refused(posterior, images, tiny_network):
    other = IsingViT(tiny_network, IsingSpikeSlab(tiny_network.weight_sites()), num_data=30)
    with pytest.raises(InputError, match="other sites"):
        against_reference(Posterior.of(LikelihoodGuided(other)), reference_of(posterior, images, draws=4), images)
