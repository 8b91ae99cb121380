"""Priors against sums over all states, formulas written out, and scipy."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from torch import nn

from pyro_isingvit import (
    Coupling,
    CouplingGraph,
    InputError,
    Posterior,
    Prior,
    TraceGraph_ELBO,
    WeightSite,
)
from pyro_isingvit.draws import prior_draws
from pyro_isingvit.guides import LikelihoodGuided, MeanField
from pyro_isingvit.models import (
    BackwardIsingSpikeSlab,
    HierarchicalSpikeSlab,
    IndependentSpikeSlab,
    Interaction,
    IsingSpikeSlab,
    IsingViT,
    LatticeSpikeSlab,
    RegularisedHorseshoe,
    StructuredSpikeSlab,
)
from pyro_isingvit.testing import TwoLayers

STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)))
JOINT = [Coupling("first", "second", ("hidden",), 1.5)]


def masks_of(state):
    return {"first": state[:6].view(2, 3), "second": state[6:].view(2, 2)}


def log_measure(prior, state, normalised):
    masks = masks_of(state)
    total = prior.interaction.energy(masks)
    for site in prior.sites.values():
        total = total + prior.mask(site).log_prob(masks[site.name])
    return total - prior.interaction.log_normaliser(masks) if normalised else total


def small(prior=IsingSpikeSlab, **options):
    sites = TwoLayers().weight_sites()
    return prior(sites, inclusion=0.3, couplings=CouplingGraph(sites, JOINT), **options)


@torch.no_grad()
def test_a_directed_prior_sums_to_one_as_it_stands():
    prior = small(BackwardIsingSpikeSlab, coupling=0.9)
    assert torch.stack([log_measure(prior, s, False) for s in STATES]).logsumexp(0).item() == pytest.approx(0, abs=1e-4)


@torch.no_grad()
def test_a_directed_prior_has_the_published_log_odds():
    """logit p(first = 1 | second) = field + 2 J * mean spin of the weights behind, squares as weights."""
    prior = small(BackwardIsingSpikeSlab, coupling=0.9, weighting="magnitude")
    weights = {"first": torch.rand(2, 3), "second": torch.rand(2, 2)}
    prior.interaction.observe_weights(weights)
    state = torch.bernoulli(torch.full((10,), 0.5))
    on, off = state.clone(), state.clone()
    on[4], off[4] = 1.0, 0.0  # first[1, 1], at hidden unit 1
    log_odds = (log_measure(prior, on, False) - log_measure(prior, off, False)).item()
    square, spin = weights["second"][:, 1] ** 2, 2 * masks_of(state)["second"][:, 1] - 1
    behind = ((square * spin).sum() / square.sum()).item()
    assert log_odds == pytest.approx(math.log(0.3 / 0.7) + 2 * 0.9 * 1.5 * behind, abs=1e-4)


@torch.no_grad()
def test_magnitude_weighting_is_uniform_until_weights_are_seen_and_where_they_are_alike():
    uniform, magnitude = small(coupling=0.4), small(coupling=0.4, weighting="magnitude")
    masks = masks_of(torch.bernoulli(torch.full((10,), 0.5)))
    torch.testing.assert_close(magnitude.interaction.energy(masks), uniform.interaction.energy(masks))
    magnitude.interaction.observe_weights({name: torch.full_like(mask, 3.0) for name, mask in masks.items()})
    torch.testing.assert_close(magnitude.interaction.energy(masks), uniform.interaction.energy(masks))
    magnitude.interaction.observe_weights({name: torch.rand_like(mask) for name, mask in masks.items()})
    assert not torch.isclose(magnitude.interaction.energy(masks), uniform.interaction.energy(masks))


def test_a_learned_coupling_is_normalised_exactly_where_small():
    prior = small(coupling=0.35, learn_coupling=True)
    total = torch.stack([log_measure(prior, s, True) for s in STATES]).logsumexp(0)
    assert total.item() == pytest.approx(0, abs=1e-4)
    assert torch.autograd.grad(total, prior.coupling)[0].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("weighting", ["uniform", "magnitude"])
def test_a_learned_coupling_has_the_pseudo_likelihood_where_large(monkeypatch, weighting):
    monkeypatch.setattr("pyro_isingvit.models.priors.ising.EXACT_LIMIT", 0)
    prior = small(coupling=0.35, learn_coupling=True, weighting=weighting)
    prior.interaction.observe_weights({"first": torch.rand(2, 3), "second": torch.rand(2, 2)})
    state = torch.bernoulli(torch.full((10,), 0.5))
    conditionals = 0.0
    for i in range(10):
        ends = []
        for value in (0.0, 1.0):
            changed = state.clone()
            changed[i] = value
            ends.append(log_measure(prior, changed, False))
        conditionals = conditionals + torch.stack(ends).log_softmax(0)[int(state[i])]
    ours = log_measure(prior, state, True)
    assert ours.item() == pytest.approx(conditionals.item(), abs=1e-4)
    slopes = [torch.autograd.grad(x, prior.coupling)[0].item() for x in (ours, conditionals)]
    assert slopes[0] == pytest.approx(slopes[1], abs=1e-3)


def test_learned_slab_scale_moves_to_the_scale_of_the_weights(tiny_network):
    prior = IndependentSpikeSlab(tiny_network.weight_sites(), learn_slab_scale=True)
    site = prior.sites["encoder.up"]
    weights = 0.3 * torch.randn(site.shape)
    optimizer = torch.optim.LBFGS(prior.log_slab_scale.parameters(), line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -prior.weight(site, torch.ones(site.shape)).log_prob(weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    scale = prior.log_slab_scale["encoder_up"].exp().item() * site.fan_in**-0.5
    assert scale == pytest.approx(weights.square().mean().sqrt().item(), rel=1e-3)


def test_inclusion_by_role_and_block(tiny_network):
    prior = IndependentSpikeSlab(tiny_network.weight_sites(), {"encoder.up": [0.1, 0.6], "classifier.out": 0.9})
    assert prior.mask(prior.sites["encoder.up"]).mean[:, 0, 0].tolist() == pytest.approx([0.1, 0.6])
    assert prior.mask(prior.sites["classifier.out"]).mean.unique().item() == pytest.approx(0.9)
    assert prior.mask(prior.sites["encoder.key"]).mean.unique().item() == pytest.approx(0.2)


def test_hierarchical_inclusion_is_inferred(tiny_network):
    """With all masks known the posterior of an inclusion probability is a Beta; the guide's finds its mean."""
    model = IsingViT(tiny_network, HierarchicalSpikeSlab(tiny_network.weight_sites(), by="role"), num_data=1)
    model.temperature = 1e9  # the likelihood is silent
    guide = MeanField(model, initial_logit=3.0)
    optimizer = torch.optim.Adam(
        guide.hyper_loc.parameters() and [*guide.hyper_loc.values(), *guide.hyper_log_scale.values()], 0.03
    )
    site = model.prior.sites["encoder.up"]

    loss = TraceGraph_ELBO()(model, guide)
    images, labels = torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.long)
    for _ in range(600):
        optimizer.zero_grad()
        loss(images, labels).backward()
        optimizer.step()
    on = site.numel * torch.tensor(3.0).sigmoid().item()
    exact = scipy.stats.beta(0.2 * 10 + on, 0.8 * 10 + site.numel - on)
    with torch.no_grad():
        draws = guide.hyper("encoder.up.inclusion", guide._hypers["mask"]["encoder.up.inclusion"]).sample((4000,))
    assert draws.mean().item() == pytest.approx(exact.mean(), abs=0.02)
    assert draws.std().item() == pytest.approx(exact.std(), rel=0.4)


class OneMean(Prior):
    """All weights have the same unknown mean."""

    def slab(self, site):
        mean = pyro.sample("mean", dist.Normal(self.zero, self.zero + 1.0))
        return dist.Normal(mean, self.zero + 0.5).expand(site.shape)


def test_a_latent_variable_that_sites_share_is_one(tiny_network):
    """Given the weights its posterior is normal, and all sites count: by the sum over them of n / 0.5 ** 2."""
    model = IsingViT(tiny_network, OneMean(tiny_network.weight_sites()), num_data=1, temperature=1e9)
    guide = MeanField(model, initial_scale=1e-3)
    assert list(guide.hyper_loc) == ["mean"]
    loss = TraceGraph_ELBO()(model, guide)
    optimizer = torch.optim.Adam([*guide.hyper_loc.values(), *guide.hyper_log_scale.values()], 0.03)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.99**step
        optimizer.zero_grad()
        loss(torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.long)).backward()
        optimizer.step()
    weights = torch.cat([loc.detach().flatten() for loc in guide.loc.values()])
    precision = 1 + len(weights) / 0.5**2
    assert guide.hyper_loc["mean"].item() == pytest.approx(weights.sum().item() / 0.5**2 / precision, abs=2e-3)
    assert guide.hyper_log_scale["mean"].exp().item() == pytest.approx(precision**-0.5, rel=0.05)
    draw = next(Posterior((guide,)).draws(1))
    assert draw.latents.keys() == {"mean"}
    assert draw.latents["mean"].item() == pytest.approx(guide.hyper_loc["mean"].item(), abs=5 * precision**-0.5)
    before = next(prior_draws(model, 1, 0))
    for weight in before.weights.values():  # around the mean that was drawn, at every site
        assert (weight.mean() - before.latents["mean"]).abs() < 5 * 0.5 * weight.numel() ** -0.5


class ByMistake(OneMean):
    """One name for latent variables of another shape at each site."""

    def slab(self, site):
        return dist.Normal(pyro.sample("mean", dist.Normal(self.zero, 1.0).expand(site.shape)), 1.0)


def test_one_name_for_two_latent_variables_is_refused(tiny_network):
    model = IsingViT(tiny_network, ByMistake(tiny_network.weight_sites()))
    with pytest.raises(
        InputError, match=r"samples 'mean' of shape \(4, 4\), and again of shape \(2, 2, 2, 4\).*'{site"
    ):
        model.draw_weights()


def test_structured_masks_and_their_couplings(tiny_network):
    prior = StructuredSpikeSlab(tiny_network.weight_sites(), coupling=0.5)
    guide = LikelihoodGuided(IsingViT(tiny_network, prior))
    assert {name: tuple(shape) for name, shape in guide.mask_shapes.items()} == {
        "patch_embed": (1, 4),
        "encoder.query": (2, 2, 1, 1),
        "encoder.key": (2, 2, 1, 1),
        "encoder.value": (2, 2, 1, 1),
        "encoder.out": (2, 1, 2, 1),
        "encoder.up": (2, 8, 1),
        "encoder.down": (2, 1, 8),
        "classifier.hidden": (2, 1),
        "classifier.out": (1, 2),
    }
    masks = {name: torch.ones(shape, requires_grad=True) for name, shape in guide.mask_shapes.items()}
    pulls = dict(
        zip(
            masks,
            torch.autograd.grad(prior.interaction.energy(masks), masks.values(), materialize_grads=True),
            strict=True,
        )
    )
    assert pulls["encoder.up"].unique().tolist() == [1.0]  # 2 J, from the one partner
    assert pulls["encoder.query"].unique().tolist() == [1.0]
    assert pulls["patch_embed"].unique().tolist() == [0.0]


class StructuredBackward(StructuredSpikeSlab, BackwardIsingSpikeSlab):
    """The two together."""


@pytest.mark.parametrize("prior", [StructuredSpikeSlab, StructuredBackward])
def test_structured_inclusion_by_block(tiny_network, prior):
    sites = tiny_network.weight_sites()
    each, one = (prior(sites, inclusion={"encoder.up": p}, coupling=0.3) for p in ([0.1, 0.1], 0.1))
    masks = {s.name: torch.bernoulli(torch.full(each.mask(s).event_shape, 0.5)) for s in sites}
    torch.testing.assert_close(each.interaction.energy(masks), one.interaction.energy(masks))
    assert each.mask(each.sites["encoder.up"]).mean.unique().item() == pytest.approx(0.1)


def test_magnitudes_are_part_of_the_state(tiny_network):
    first, second = (IsingSpikeSlab(tiny_network.weight_sites(), coupling=0.3, weighting="magnitude") for _ in range(2))
    first.interaction.observe_weights({name: torch.rand(site.shape) for name, site in first.sites.items()})
    second.load_state_dict(first.state_dict())
    masks = {name: torch.bernoulli(torch.full(site.shape, 0.5)) for name, site in first.sites.items()}
    torch.testing.assert_close(first.interaction.energy(masks), second.interaction.energy(masks))


class LearnedField(IsingSpikeSlab):
    def __init__(self, sites, **options):
        super().__init__(sites, **options)
        self.rate = nn.Parameter(torch.tensor(-1.0))

    def inclusion_of(self, site):
        return self.rate.sigmoid() if hasattr(self, "rate") else 0.27


def test_a_learned_field_beneath_a_coupling_is_normalised():
    sites = TwoLayers().weight_sites()
    prior = LearnedField(sites, coupling=0.4, couplings=CouplingGraph(sites, JOINT))
    model = IsingViT(TwoLayers(), prior)
    trace = poutine.trace(model.draw_weights).get_trace()
    masks = {name: trace.nodes[f"{name}.mask"]["value"] for name in prior.sites}
    expected = (prior.interaction.energy(masks) - prior.interaction.log_normaliser(masks)).item()
    factor = trace.nodes["ising"]["fn"].log_factor.item()
    assert factor == pytest.approx(expected, abs=1e-5)
    total = torch.stack([log_measure(prior, s, True) for s in STATES]).logsumexp(0)
    assert torch.autograd.grad(total, prior.rate)[0].item() == pytest.approx(0, abs=1e-3)


def test_lattice_energy_is_the_sum_over_neighbours(tiny_network):
    prior = LatticeSpikeSlab(tiny_network.weight_sites(), coupling=0.3)
    masks = {name: torch.bernoulli(torch.full(site.shape, 0.5)) for name, site in prior.sites.items()}
    total = 0.0
    for mask in masks.values():
        spins = (2 * mask - 1).reshape(-1, *mask.shape[-2:])
        for matrix in spins:
            for i, j in itertools.product(range(matrix.shape[0]), range(matrix.shape[1])):
                for a, b in ((i + 1, j), (i, j + 1)):
                    if a < matrix.shape[0] and b < matrix.shape[1]:
                        total += float(matrix[i, j] * matrix[a, b])
    assert prior.interaction.energy(masks).item() == pytest.approx(0.3 * total, abs=1e-3)
    with pytest.warns(UserWarning, match="beyond 0.4407 a lattice orders by itself"):
        LatticeSpikeSlab(tiny_network.weight_sites(), coupling=0.6)


def test_horseshoe_density_is_its_formula(tiny_network):
    prior = RegularisedHorseshoe(tiny_network.weight_sites(), global_scale=0.2, slab_scale=2.0)
    site = prior.sites["classifier.out"]
    trace = poutine.trace(prior.weight).get_trace(site, None)
    tau, local = trace.nodes["classifier.out.global"]["value"], trace.nodes["classifier.out.local"]["value"]
    fn = trace.nodes["_RETURN"]["value"]
    value = fn.sample()
    shrunk = 2.0 * local / (4.0 + tau**2 * local**2).sqrt()
    expected = dist.Normal(0, tau * shrunk / site.fan_in**0.5).log_prob(value).sum()
    torch.testing.assert_close(fn.log_prob(value), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: IndependentSpikeSlab(s, {"encoder.donw": 0.1}), r"no site \['encoder.donw'\]"),
        (lambda s: IndependentSpikeSlab(s, {"encoder.up": [0.1]}), "one value for each of its blocks"),
        (lambda s: IndependentSpikeSlab(s, {"classifier.out": [0.1, 0.2]}), "one value for each of its blocks"),
        (lambda s: IndependentSpikeSlab(s, {"classifier.out": 1.0}), "inclusion=1.0"),
        (lambda s: IsingSpikeSlab(s, weighting="mass"), "weighting='mass': choose one of"),
        (lambda s: BackwardIsingSpikeSlab(s).ising(), "only a symmetric prior"),
        (lambda s: HierarchicalSpikeSlab(s, concentration=0), "concentration=0"),
        (lambda s: HierarchicalSpikeSlab(s, by="head"), "by='head'"),
        (lambda s: StructuredSpikeSlab(s, {"encoder.donw": ("hidden",)}), "no site 'encoder.donw'"),
        (lambda s: StructuredSpikeSlab(s, {"encoder.up": ("head",)}), "must be among its dims"),
        (lambda s: RegularisedHorseshoe(s, global_scale=0), "global_scale=0"),
    ],
)
def test_impossible_priors_are_refused(tiny_network, make, message):
    with pytest.raises(InputError, match=message):
        make(tiny_network.weight_sites())


def test_lattice_gibbs_by_chessboard_has_the_exact_marginals():
    """Twelve masks in two matrices of 2 x 3, 4,000 chains from all on; five standard errors."""
    site = WeightSite("w", (2, 2, 3), ("layer", "a", "b"), ("b",), ("a",))
    prior = LatticeSpikeSlab([site], inclusion=0.4, coupling=0.35).ising(site)
    drawn = prior.gibbs(torch.ones(4000, 12), 30).mean(0)
    exact = prior.marginals()
    assert ((drawn - exact).abs() < 5 * (exact * (1 - exact) / 4000).sqrt()).all()
    assert (exact - 0.4).abs().max() > 0.1  # far from what the masks would be alone


def test_an_interaction_written_as_a_method_is_refused():
    with pytest.raises(InputError, match=r"Old\.potential is not used: set interaction"):

        class Old(IndependentSpikeSlab):
            def potential(self, masks):
                return masks["first"].sum()


def test_a_function_of_the_masks_is_an_interaction():
    """The prior with it is the independent one times exp(energy), over all states of ten masks."""
    prior = IndependentSpikeSlab(TwoLayers().weight_sites(), inclusion=0.3)
    prior.interaction = Interaction(lambda masks: 0.7 * masks["first"].sum())
    logs = torch.stack([log_measure(prior, state, False) for state in STATES])
    exact = torch.einsum("s,sn->n", logs.softmax(0), STATES)
    log_odds = math.log(0.3 / 0.7)
    expected = [1 / (1 + math.exp(-log_odds - 0.7))] * 6 + [0.3] * 4
    assert exact.tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(NotImplementedError, match=r"Interaction must implement energy\(masks\), or be given"):
        Interaction().energy({})


@pytest.mark.parametrize(
    ("inclusion", "message"),
    [
        (torch.tensor(1.3), r"inclusion_of\(patch_embed\) has 1.3: a prior probability lies strictly between 0 and 1"),
        (torch.tensor([0.2, math.nan, 0.2, 0.2]), r"inclusion_of\(patch_embed\) has nan"),
        (torch.full((3,), 0.2), r"inclusion_of\(patch_embed\) has shape \(3,\): it has to broadcast .* \(4, 4\) over"),
        (torch.full((1, 1, 4), 0.2), r"has shape \(1, 1, 4\)"),
    ],
)
def test_an_impossible_hook_is_named(tiny_network, inclusion, message):
    class Mine(IndependentSpikeSlab):
        def inclusion_of(self, site):
            return inclusion

    with pytest.raises(InputError, match=message):
        IsingViT(tiny_network, Mine(tiny_network.weight_sites()))
