"""Structured guides where the whole posterior of the masks can be listed."""

import itertools
import math

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine

from pyro_isingvit import (
    Coupling,
    CouplingGraph,
    FitConfig,
    Images,
    IsingViT,
    TraceGraph_ELBO,
    fit,
)
from pyro_isingvit.distributions import StraightThroughConcrete
from pyro_isingvit.guides import BackwardIsing, LowRank, MeanField, ScoreFunction
from pyro_isingvit.models import IsingSpikeSlab
from pyro_isingvit.testing import TwoLayers
from tests.inference.test_exact_posterior import Given

STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)))


@pytest.fixture(scope="module")
def system():
    """Ten masks, coupled strongly through two hidden units, and so few data that they stay uncertain."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = TwoLayers()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.2)
        images = torch.rand(30, 1, 1, 3)
        labels = torch.distributions.Categorical(logits=network(images)).sample()
    joint = CouplingGraph(network.weight_sites(), [Coupling("first", "second", ("hidden",))])
    prior = Given(network, inclusion=0.45, coupling=0.8, couplings=joint)
    return network, prior, Images(images, labels, 2)


def masks_of(state):
    return {"first": state[:6].view(2, 3), "second": state[6:].view(2, 2)}


def log_joint(system):
    """Unnormalised log posterior of every state."""
    network, prior, data = system
    values = []
    for state in STATES:
        masks = masks_of(state)
        weights = {name: mask * prior.known[name] for name, mask in masks.items()}
        logits = torch.func.functional_call(network, weights, (data.images,))
        base = state.sum() * torch.tensor(prior.inclusion).logit() + 10 * torch.tensor(1 - prior.inclusion).log()
        values.append(base + prior.interaction.energy(masks) - F.cross_entropy(logits, data.labels, reduction="sum"))
    return torch.stack(values)


def correlations(q):
    mean = q @ STATES
    covariance = torch.einsum("k,ki,kj->ij", q, STATES - mean, STATES - mean)
    deviation = covariance.diagonal().sqrt()
    return covariance / deviation.outer(deviation)


def fitted_q(system, family, steps=3000, **options):
    """q of every state, fitted by stochastic gradients of the ELBO alone."""
    network, prior, data = system
    model = IsingViT(network, prior)
    guide = family(model, initial_logit=0.0, initial_scale=math.exp(-9), mask_rate=2e7, **options)
    config = FitConfig(
        steps=steps, batch_size=30, learning_rate=1e-9, warmup=0.05, pilot=0.0, temperature=1.0, device="cpu", clip=1e9
    )
    fit(guide, data, config=config, progress=False)
    return guide


def all_log_probs(guide):
    with torch.no_grad():
        return torch.stack([guide.mask_log_prob(masks_of(state)) for state in STATES])


@pytest.mark.filterwarnings("ignore:.*median network keeps no weight")
def test_backward_ising_beats_mean_field_under_strong_coupling(system):
    """Measured: gaps to the log evidence of 0.38 (mean field) and 0.04 nats, errors of correlations 0.27 and 0.04."""
    log_p = log_joint(system)
    exact = correlations(log_p.softmax(0))
    # first[h, pixel] and second[class, h] meet at unit h
    coupled = [(3 * h + i, 6 + 2 * c + h) for h in range(2) for i in range(3) for c in range(2)]
    figures = {}
    for family in (MeanField, BackwardIsing):
        log_q = all_log_probs(fitted_q(system, family))
        elbo = (log_q.exp() * (log_p - log_q)).sum()
        gap = (log_p.logsumexp(0) - elbo).item()
        error = sum((correlations(log_q.exp())[i, j] - exact[i, j]).abs().item() for i, j in coupled) / len(coupled)
        figures[family.__name__] = (gap, error)
    print(figures, min(exact[i, j].item() for i, j in coupled))
    assert all(gap > -1e-4 for gap, _ in figures.values())
    assert figures["BackwardIsing"][0] < 0.5 * figures["MeanField"][0]
    assert figures["BackwardIsing"][1] < 0.5 * figures["MeanField"][1]


@pytest.mark.filterwarnings("ignore:.*median network keeps no weight")
def test_low_rank_masks_have_the_correlations_of_the_posterior(system):
    exact = correlations(log_joint(system).softmax(0))
    guide = fitted_q(system, LowRank, rank=2, initial_factor=0.5)
    with torch.no_grad(), poutine.block():
        draws = [guide.draw_masks() for _ in range(4000)]
    states = torch.stack([torch.cat([d["first"].flatten(), d["second"].flatten()]) for d in draws])
    ours = torch.corrcoef(states.T)
    coupled = [(3 * h + i, 6 + 2 * c + h) for h in range(2) for i in range(3) for c in range(2)]
    error = sum((ours[i, j] - exact[i, j]).abs().item() for i, j in coupled) / len(coupled)
    uncorrelated = sum(exact[i, j].abs().item() for i, j in coupled) / len(coupled)
    print(error, uncorrelated)
    assert error < 0.75 * uncorrelated


def test_low_rank_marginals_do_not_depend_on_the_factor(tiny_model):
    guide = LowRank(tiny_model, initial_logit=0.4, initial_factor=2.0)
    with torch.no_grad(), poutine.block():
        draws = torch.stack([guide.draw_masks()["encoder.up"] for _ in range(3000)])
    # masks of one draw are correlated; each mask alone has 3,000 independent draws
    p = torch.tensor(0.4).sigmoid()
    assert (draws.mean(0) - p).abs().max() < 5 * (p * (1 - p) / 3000).sqrt()


def test_backward_ising_without_strength_is_mean_field(tiny_model):
    guide = BackwardIsing(tiny_model, initial_logit=0.7)
    masks = {name: torch.bernoulli(torch.full(shape, 0.5)) for name, shape in guide.mask_shapes.items()}
    plain = MeanField(tiny_model, initial_logit=0.7)
    torch.testing.assert_close(guide.mask_log_prob(masks), plain.mask_log_prob(masks))


def test_backward_ising_draws_follow_its_log_prob(system):
    """Every state of ten masks as often as said: total variation within that of as many exact draws."""
    network, prior, _ = system
    guide = BackwardIsing(IsingViT(network, prior), initial_logit=-0.3, initial_strength=0.9)
    q = all_log_probs(guide).exp()
    assert q.sum().item() == pytest.approx(1, abs=1e-5)
    with torch.no_grad(), poutine.block():
        draws = [guide.draw_masks() for _ in range(5000)]
    states = torch.stack([torch.cat([d["first"].flatten(), d["second"].flatten()]) for d in draws])
    codes = (states @ 2.0 ** torch.arange(9, -1, -1)).long()
    frequency = torch.bincount(codes, minlength=1024) / 5000
    exact = torch.bincount(torch.multinomial(q, 5000, replacement=True), minlength=1024) / 5000
    assert (frequency - q).abs().sum() < 1.15 * (exact - q).abs().sum()


def test_concrete_draws_and_gradient():
    logits = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    q = StraightThroughConcrete(logits=logits, temperature=0.5)
    draws = q.rsample((40_000,))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    probs = logits.detach().sigmoid()
    assert ((draws.detach().mean(0) - probs).abs() < 4 * (probs * (1 - probs) / 40_000).sqrt()).all()
    gradient = torch.autograd.grad(draws.mean(0).sum(), logits)[0]
    uniform = (torch.arange(200_000) + 0.5) / 200_000
    soft = ((logits.detach().unsqueeze(-1) + uniform.logit()) / 0.5).sigmoid()
    expected = (soft * (1 - soft) / 0.5).mean(-1)
    torch.testing.assert_close(gradient, expected, atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="temperature=0"):
        StraightThroughConcrete(logits=logits, temperature=0)


def test_backward_order_puts_those_behind_first(tiny_network):
    graph = IsingSpikeSlab(tiny_network.weight_sites(), coupling=0.5).couplings
    order = graph.backward_order()
    assert len(order) == len(set(order)) == 3 + 6 * 2
    place = {node: i for i, node in enumerate(order)}
    assert place["encoder.down", 0] < place["encoder.up", 0] < place["encoder.out", 0]
    assert place["encoder.query", 1] < place["encoder.down", 0]
    assert place["classifier.out", None] < place["classifier.hidden", None] < place["encoder.down", 1]


def test_plates_keep_the_terms_of_a_mask_to_itself(tiny_model, stripes):
    """With the likelihood silent only a mask's own prior and entropy count: far less scatter, the same mean."""
    tiny_model.temperature = 1e12
    tiny_model.prior.coupling = 0.0
    scatter, means = {}, {}
    for plated in (True, False):
        guide = ScoreFunction(tiny_model, baseline="none", initial_logit=0.5)
        guide.plated = plated
        loss, gradients = TraceGraph_ELBO()(tiny_model, guide), []
        with pyro.validation_enabled(False):  # it is slow on tensors whose provenance is tracked
            for _ in range(150):
                loss.zero_grad()
                loss(stripes.images[:1], stripes.labels[:1]).backward()
                gradients.append(guide.logit["encoder_up"].grad.flatten().clone())
        each = torch.stack(gradients)
        scatter[plated], means[plated] = each.var(0).mean(), each.mean()
    assert scatter[True] < 0.05 * scatter[False]
    # all masks of the role start alike, so that their mean is one number with a small standard error
    error = (scatter[False] / (150 * 64)) ** 0.5
    assert abs(means[True] - means[False]) < 5 * error


def test_masks_that_a_mixin_draws_are_not_taken_for_independent():
    class Drawing:
        def draw_masks(self):
            return super().draw_masks()

    class Mixed(Drawing, MeanField):
        """Dependent, for all one knows."""

    class Known(Drawing, MeanField):
        independent_masks = True

    assert (Mixed.independent_masks, Known.independent_masks) == (False, True)
    assert (LowRank.independent_masks, MeanField.independent_masks, ScoreFunction.independent_masks) == (
        False,
        True,
        True,
    )
