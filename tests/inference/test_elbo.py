"""Gradients of TraceGraph_ELBO against Pyro's own and against enumeration."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

from pyro_isingvit import (
    IndependentSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    StraightThroughBernoulli,
    TraceGraph_ELBO,
)

REPLICAS = 40_000
LOGITS = torch.tensor([-0.8, 0.3, 1.1])
EVIDENCE = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.5, -1.0]])


def multilinear(m):
    return 2 * m[..., 0] * m[..., 1] - 1.5 * m[..., 1] * m[..., 2] + m[..., 0]


def logistic(m):
    """A likelihood: two observations of a logistic regression with weights 3m."""
    return F.logsigmoid(3 * m @ EVIDENCE.T).sum(-1)


def exact_gradient(f):
    """Of the ELBO in the logits, by the sum over all eight states."""
    logits = LOGITS.clone().requires_grad_()
    q = dist.Bernoulli(logits=logits).to_event(1)
    prior = dist.Bernoulli(0.5 * torch.ones(3)).to_event(1)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    elbo = (q.log_prob(states).exp() * (f(states) + prior.log_prob(states) - q.log_prob(states))).sum()
    return torch.autograd.grad(elbo, logits)[0]


def estimated_gradient(f, family):
    """Mean and standard error over many independent single-draw gradients, each replica with logits of its own."""
    logits = LOGITS.repeat(REPLICAS, 1).requires_grad_()
    half = 0.5 * torch.ones(REPLICAS, 3)

    def model():
        with pyro.plate("replicas", REPLICAS):
            pyro.factor("f", f(pyro.sample("m", family(half).to_event(1))))

    def guide():
        with pyro.plate("replicas", REPLICAS):
            pyro.sample("m", family(logits=logits).to_event(1))

    TraceGraph_ELBO().differentiable_loss(model, guide).backward()
    return -logits.grad.mean(0), logits.grad.std(0) / REPLICAS**0.5


@pytest.mark.parametrize(
    ("f", "family"),
    [(multilinear, StraightThroughBernoulli), (multilinear, dist.Bernoulli), (logistic, dist.Bernoulli)],
)
def test_unbiased_where_theory_says_so(f, family):
    mean, error = estimated_gradient(f, family)
    assert (error < 0.05).all()
    assert ((mean - exact_gradient(f)).abs() < 4 * error).all()


def test_straight_through_is_biased_in_a_likelihood():
    """Measured: 0.028, -0.064, -0.045 on gradients 0.624, -0.479, -0.215, with standard errors below 0.005."""
    mean, error = estimated_gradient(logistic, StraightThroughBernoulli)
    exact = exact_gradient(logistic)
    assert exact.tolist() == pytest.approx([0.6241, -0.4788, -0.2152], abs=1e-4)
    assert ((mean - exact).abs() > 8 * error).all()
    assert (mean - exact).tolist() == pytest.approx([0.028, -0.064, -0.045], abs=0.015)


@pytest.mark.parametrize("spike_scale", [0.0, 0.1])
def test_masks_feel_the_price_of_a_weight_without_bias(tiny_network, stripes, spike_scale):
    """With the likelihood silent, the gradient of the ELBO in a logit l is p (1 - p) (prior log odds - l - KL)."""
    prior = IndependentSpikeSlab(tiny_network.weight_sites(), inclusion=0.3, spike_scale=spike_scale)
    model = IsingViT(tiny_network, prior, temperature=1e12)
    guide = MeanField(model, initial_logit=0.4, initial_scale=0.05)
    loss, gradients = TraceGraph_ELBO()(model, guide), []
    for _ in range(1000):
        loss.zero_grad()
        loss(stripes.images[:1], stripes.labels[:1]).backward()
        gradients.append(-guide.logit["encoder_up"].grad.clone())
    mean, error = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / 1000**0.5
    site, p = prior.sites["encoder.up"], torch.tensor(0.4).sigmoid()
    divergence = torch.distributions.kl_divergence(guide.slab(site), prior.slab(site)).detach()
    exact = p * (1 - p) * (torch.tensor(0.3).logit() - 0.4 - divergence)
    assert ((mean - exact).abs() < 5 * error + 1e-4).all()
    assert error.max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("family", [MeanField, LikelihoodGuided])
def test_differentiable_loss_has_the_gradients_of_loss_and_grads(tiny_model, stripes, family):
    guide = family(tiny_model)
    module = TraceGraph_ELBO()(tiny_model, guide)

    def gradients(run):
        module.zero_grad()
        torch.manual_seed(3)
        loss = run()
        return loss, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    def differentiable():
        loss = module(stripes.images, stripes.labels)
        loss.backward()
        return loss.item()

    ours = gradients(differentiable)
    pyros = gradients(
        lambda: pyro.infer.TraceGraph_ELBO().loss_and_grads(tiny_model, guide, stripes.images, stripes.labels)
    )
    assert ours[0] == pytest.approx(pyros[0])
    assert ours[1].keys() == pyros[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, pyros[1][name])
