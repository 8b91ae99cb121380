"""The reference sampler against enumeration, with weights known and weights integrated out."""

import itertools
import math

import pytest
import torch
from pyro.distributions import Normal

from pyro_isingvit import (
    Coupling,
    CouplingGraph,
    Gaussian,
    Images,
    IndependentSpikeSlab,
    InputError,
    Interaction,
    IsingSpikeSlab,
    IsingViT,
    Likelihood,
    LikelihoodGuided,
    Posterior,
    Prior,
    WeightSite,
)
from pyro_isingvit.inference.reference import sample_reference
from pyro_isingvit.models.priors import HierarchicalSpikeSlab, LatticeSpikeSlab, RegularisedHorseshoe
from pyro_isingvit.testing import TwoLayers

from .test_exact_posterior import Given, enumerate_inclusion, problem  # noqa: F401, a fixture


def coupled(network):
    return CouplingGraph(network.weight_sites(), [Coupling("first", "second", ("hidden",))])


@pytest.mark.parametrize(("coupling", "temperature"), [(0.0, 1.0), (0.3, 3.0)])
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
        torch.manual_seed(2)
        network = TwoLayers()
        images = torch.rand(15, 1, 1, 3)
        with torch.no_grad():
            labels = (torch.rand(15) < network(images).softmax(-1)[:, 1]).long()
        prior = IsingSpikeSlab(
            network.weight_sites(), inclusion=0.4, coupling=0.3, couplings=coupled(network), slab_scale=1.5
        )
        states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)))
        masks = {"first": states[:, :6].view(-1, 2, 3), "second": states[:, 6:].view(-1, 2, 2)}
        log_prior = states.sum(1) * torch.tensor(0.4 / 0.6).log() + prior.interaction.energy(masks)
        draws, total = 4000, []
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
    found = sample_reference(IsingViT(network, prior), data, draws=900, warmup=100, chains=2, progress=False)
    inclusion = torch.cat([p.flatten() for p in found.inclusion_probabilities().values()])
    assert exact.max() - exact.min() > 0.25
    assert (inclusion - exact).abs().mean() < 0.02
    assert (inclusion - exact).abs().max() < 0.06
    assert (found.acceptance > 0.5).all()


def test_draws_are_those_of_the_seed_and_consistent(uncertain):
    network, prior, data, _ = uncertain
    model = IsingViT(network, prior)
    found, again, other = (
        sample_reference(model, data, draws=5, warmup=3, chains=2, seed=seed, progress=False) for seed in (4, 4, 5)
    )
    assert torch.equal(found.log_likelihood, again.log_likelihood)
    assert not torch.equal(found.log_likelihood[1], other.log_likelihood[0])
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


def without_likelihood(prior, draws=250):
    """Inclusion probabilities of the first site as the sampler finds them where images say nothing."""
    network = TwoLayers()
    model = IsingViT(network, prior, temperature=1e9)
    data = Images(torch.rand(2, 1, 1, 3), torch.tensor([0, 1]), 2)
    return sample_reference(model, data, draws=draws, warmup=5, chains=2, progress=False)


def test_an_interaction_that_takes_one_state_at_a_time_counts():
    prior = IndependentSpikeSlab(TwoLayers().weight_sites(), inclusion=0.5)
    prior.interaction = Interaction(lambda masks: -2 * masks["first"].sum())
    found = without_likelihood(prior)
    inside = found.inclusion_probabilities()
    # sigmoid(-2) = .119; 3,000 draws of masks that are independent
    assert float(inside["first"].mean()) == pytest.approx(0.119, abs=0.02)
    assert float(inside["second"].mean()) == pytest.approx(0.5, abs=0.03)
    lattice = LatticeSpikeSlab(TwoLayers().weight_sites(), inclusion=0.3, coupling=0.3)
    found = float(without_likelihood(lattice).inclusion_probabilities()["first"].mean())
    assert found == pytest.approx(float(lattice.draw_masks(4000)["first"].mean()), abs=0.04)


def test_a_weight_that_is_normal_given_its_mask():
    class Continuous(IndependentSpikeSlab):
        def weight(self, site, mask):
            return Normal(0.0, (0.01 + 2 * mask).expand(site.shape)).to_event(2)

    found = without_likelihood(Continuous(TwoLayers().weight_sites(), inclusion=0.5))
    masks, weights = found.masks["first"], found.weights["first"]
    assert float(weights[masks == 0].std()) == pytest.approx(0.01, rel=0.1)
    assert float(weights[masks == 1].std()) == pytest.approx(2.01, rel=0.1)


def test_fixed_masks_stay():
    network = TwoLayers()
    model = IsingViT(network, IndependentSpikeSlab(network.weight_sites()))
    masks = {"first": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), "second": torch.ones(2, 2)}
    model.fix_masks(masks)
    data = Images(torch.rand(5, 1, 1, 3), torch.arange(5) % 2, 2)
    found = sample_reference(model, data, draws=4, warmup=2, chains=1, progress=False)
    assert torch.equal(found.inclusion_probabilities()["first"], masks["first"])
    assert (found.weights["first"][..., 0, 1] == 0).all()


@pytest.mark.parametrize("scale", [1 / (2 * math.pi), 0.08])
def test_no_scale_of_a_weight_is_a_period_of_its_moves(scale):
    """The spread of weights that data determine to such a scale, whatever it is to the length of the moves."""

    class Narrow(Likelihood):
        kind = "numbers"

        def distribution(self, outputs):
            return Normal(outputs, scale).to_event(1)

    class Direct(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Parameter(torch.zeros(1, 3))

        def forward(self, images):
            return self.first.expand(len(images), 3)

    site = WeightSite("first", (1, 3), ("out", "pixel"), ("pixel",), ("out",))
    prior = Prior([site])
    prior.slab = lambda site: Gaussian(prior.zero, prior.zero, site.shape)
    model = IsingViT(Direct(), prior, likelihood=Narrow())
    data = Images(torch.rand(1, 1, 1, 3), torch.tensor([[0.3, -0.3, 0.0]]), 3)
    found = sample_reference(model, data, draws=400, warmup=60, chains=2, progress=False)
    draws = found.weights["first"].flatten(0, 1).squeeze(1)
    precision = 1 + scale**-2
    expected = data.labels[0] * scale**-2 / precision
    assert ((draws.mean(0) - expected).abs() < 0.35 * precision**-0.5).all()
    torch.testing.assert_close(draws.std(0), torch.full((3,), precision**-0.5), rtol=0.25, atol=0)
