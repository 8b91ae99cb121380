"""The reference sampler against enumeration, with weights known and weights integrated out."""

import itertools

import pytest
import torch

from pyro_isingvit import (
    Coupling,
    CouplingGraph,
    Images,
    IndependentSpikeSlab,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    Posterior,
)
from pyro_isingvit.inference.reference import sample_reference
from pyro_isingvit.models.priors import HierarchicalSpikeSlab, RegularisedHorseshoe
from pyro_isingvit.testing import TwoLayers

from .test_exact_posterior import Given, enumerate_inclusion, problem  # noqa: F401, a fixture


def coupled(network):
    return CouplingGraph(network.weight_sites(), [Coupling("first", "second", ("hidden",))])


@pytest.mark.parametrize(("coupling", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.3, 3.0)])
def test_masks_equal_enumeration_where_weights_are_known(problem, coupling, temperature):  # noqa: F811
    network, data = problem
    prior = Given(network, inclusion=0.3, coupling=coupling, couplings=coupled(network))
    exact = enumerate_inclusion(network, prior, data, temperature)
    model = IsingViT(network, prior, temperature=temperature)
    found = sample_reference(model, data, draws=400, warmup=20, chains=2, progress=False)
    inclusion = torch.cat([p.flatten() for p in found.inclusion_probabilities().values()])
    # 800 nearly independent draws of ten masks in three blocks: three standard errors of at most .018
    assert (inclusion - exact).abs().max() < 0.055
    assert (inclusion - exact).abs().mean() < 0.02


@pytest.fixture(scope="module")
def uncertain():
    """Ten masks and ten weights that fifteen images say little about, with the exact inclusion probabilities.

    The weights are integrated out by importance sampling from their prior, all states of the masks enumerated.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TwoLayers()
        images = torch.rand(15, 1, 1, 3)
        with torch.no_grad():
            labels = torch.distributions.Categorical(logits=network(images)).sample()
        prior = IsingSpikeSlab(
            network.weight_sites(), inclusion=0.4, coupling=0.3, couplings=coupled(network), slab_scale=1.5
        )
        states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)))
        masks = {"first": states[:, :6].view(-1, 2, 3), "second": states[:, 6:].view(-1, 2, 2)}
        log_prior = states.sum(1) * torch.tensor(0.4 / 0.6).log() + prior.interaction.energy(masks)
        draws, total = 6000, []
        slabs = {site.name: prior.slab(site).expand(site.shape).sample((draws,)) for site in network.weight_sites()}
        x = 2 * images.flatten(1) - 1
        for m1, m2 in zip(masks["first"], masks["second"], strict=True):
            hidden = torch.tanh(torch.einsum("ni,shi->snh", x, m1 * slabs["first"]))
            logits = torch.einsum("snh,skh->snk", hidden, m2 * slabs["second"])
            total.append(logits.log_softmax(-1)[:, torch.arange(15), labels].sum(1))
        likelihood = torch.stack(total)  # (states, draws)
        posterior = (log_prior + likelihood.logsumexp(1)).softmax(0)
        halves = [(log_prior + part.logsumexp(1)).softmax(0) @ states for part in likelihood.split(draws // 2, 1)]
        assert (halves[0] - halves[1]).abs().max() < 0.06, "the importance sampling itself is not exact enough"
    return network, prior, Images(images, labels, 2), posterior @ states


def test_masks_equal_enumeration_where_weights_are_integrated_out(uncertain):
    network, prior, data, exact = uncertain
    found = sample_reference(IsingViT(network, prior), data, draws=1200, warmup=150, chains=2, progress=False)
    inclusion = torch.cat([p.flatten() for p in found.inclusion_probabilities().values()])
    assert exact.max() - exact.min() > 0.25
    assert (inclusion - exact).abs().mean() < 0.02
    assert (inclusion - exact).abs().max() < 0.06
    assert (found.acceptance > 0.5).all()


def test_draws_are_those_of_the_seed_and_consistent(uncertain):
    network, prior, data, _ = uncertain
    model = IsingViT(network, prior)
    found = sample_reference(model, data, draws=5, warmup=3, chains=2, seed=4, progress=False)
    again = sample_reference(model, data, draws=5, warmup=3, chains=1, seed=5, progress=False)
    assert torch.equal(found.log_likelihood[1], again.log_likelihood[0])
    assert not torch.equal(found.log_likelihood[0], found.log_likelihood[1])
    for site in network.weight_sites():
        masks, weights = found.masks[site.name], found.weights[site.name]
        assert masks.shape == weights.shape == (2, 5, *site.shape)
        assert ((weights == 0) == (masks == 0)).all()
    draw = {name: each[1, 2] for name, each in found.weights.items()}
    logits = torch.func.functional_call(network, draw, (data.images,))
    expected = logits.log_softmax(-1)[torch.arange(15), data.labels]
    torch.testing.assert_close(found.log_likelihood[1, 2], expected)
    predicted = found.predict(data.images).probs
    each = torch.stack(
        [
            torch.func.functional_call(network, {n: w[c, d] for n, w in found.weights.items()}, (data.images,)).softmax(
                -1
            )
            for c in range(2)
            for d in range(5)
        ]
    )
    torch.testing.assert_close(predicted, each.mean(0))


def test_a_vit_has_a_reference_too(tiny_network, stripes):
    model = IsingViT(tiny_network, IndependentSpikeSlab(tiny_network.weight_sites(), spike_scale=0.1))
    found = sample_reference(model, stripes, draws=3, warmup=2, chains=1, progress=False)
    assert found.log_likelihood.shape == (1, 3, 60)
    assert found.predict(stripes.images).probs.shape == (60, 3)


@pytest.mark.parametrize(
    ("prior", "options", "message"),
    [
        (IndependentSpikeSlab, {"draws": 0}, "draws=0"),
        (IndependentSpikeSlab, {"chains": 1.5}, "chains=1.5"),
        (HierarchicalSpikeSlab, {}, "latent variables of its own"),
        (RegularisedHorseshoe, {}, "latent variables of its own"),
    ],
)
def test_what_cannot_be_sampled_is_refused(tiny_network, stripes, prior, options, message):
    model = IsingViT(tiny_network, prior(tiny_network.weight_sites()))
    with pytest.raises(InputError, match=message):
        sample_reference(model, stripes, progress=False, **options)


def test_a_posterior_is_no_model(tiny_model, stripes):
    with pytest.raises(InputError, match=r"model=Posterior: sample_reference\(model, train\) takes an IsingViT"):
        sample_reference(Posterior.of(LikelihoodGuided(tiny_model)), stripes)
    with pytest.raises(InputError, match="train=Tensor"):
        sample_reference(tiny_model, stripes.images)
