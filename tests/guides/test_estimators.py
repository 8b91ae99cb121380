"""Estimators of the likelihood's pull against enumeration, closed forms and brute force."""

import itertools
from functools import partial

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from pyro_isingvit import (
    FitConfig,
    Images,
    InputError,
    LikelihoodGuided,
    Regression,
    TraceGraph_ELBO,
    WeightSite,
    fit,
)
from pyro_isingvit.guides.estimators import ESTIMATORS, HeldOut
from pyro_isingvit.guides.estimators.hessian_diagonal import hessian_diagonal
from pyro_isingvit.guides.estimators.paired_draws import keep_minus_drop
from pyro_isingvit.models import IndependentSpikeSlab, IsingViT
from pyro_isingvit.models.ising_vit import Pass
from pyro_isingvit.testing import TwoLayers

IMAGES = 40


@pytest.fixture
def toy():
    """Ten weights, data that they drew, and a guide with uncertain masks and next to certain weights."""
    network = TwoLayers()
    images = torch.rand(IMAGES, 1, 1, 3)
    labels = torch.distributions.Categorical(logits=network(images)).sample()
    return network, Images(images, labels, 2)


def guided(network, data, estimator, **options):
    model = IsingViT(network, IndependentSpikeSlab(network.weight_sites()), num_data=len(data))
    guide = LikelihoodGuided(model, initial_scale=1e-4, estimator=lambda m: ESTIMATORS[estimator](m, **options))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for logit in guide.logit.values():
            logit.normal_()
    return model, guide


def exact_pulls(network, data, guide):
    """E[log-likelihood | mask = 1] - E[... | mask = 0] of each of the ten masks under the guide, by enumeration."""
    probs = torch.cat([guide.logit[key].flatten().sigmoid() for key in ("first", "second")])
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)))
    values = []
    for state in states:
        weights = {
            "first": state[:6].view(2, 3) * guide.loc["first"].detach(),
            "second": state[6:].view(2, 2) * guide.loc["second"].detach(),
        }
        logits = torch.func.functional_call(network, weights, (data.images,))
        values.append(-F.cross_entropy(logits, data.labels, reduction="sum"))
    values, q = torch.stack(values), (states * probs + (1 - states) * (1 - probs)).prod(1)
    on = torch.einsum("k,k,kn->n", q, values, states) / probs
    off = torch.einsum("k,k,kn->n", q, values, 1 - states) / (1 - probs)
    return on - off


def seen_of(model, guide, data):
    """One pass of training, backwards too."""
    guide.train()
    TraceGraph_ELBO()(model, guide)(data.images, data.labels).backward()
    return guide.seen


def test_disarm_is_unbiased(toy):
    network, data = toy
    model, guide = guided(network, data, "disarm")
    seen = seen_of(model, guide, data)
    exact, draws = exact_pulls(network, data, guide), []
    for _ in range(3000):
        estimator = ESTIMATORS["disarm"](model)
        with torch.no_grad():
            estimator.update(guide, seen)
        draws.append(torch.cat([estimator.pull(site, guide.slab(site)).flatten() for site in model.sites]))
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.2 * exact.abs().max()).all()


def test_paired_draws_agree_with_enumeration_in_the_last_layer(toy):
    network, data = toy
    model, guide = guided(network, data, "paired_draws", draws=3000)
    seen = seen_of(model, guide, data)
    estimator = guide.estimator
    with torch.no_grad():
        estimator.prepare(guide, seen)
    exact = exact_pulls(network, data, guide)[6:]
    pulls = estimator.pull(model.sites[-1], guide.slab(model.sites[-1])).flatten()
    # the pairs scatter by about the pulls' own size; 3,000 of them, four standard errors
    torch.testing.assert_close(pulls, exact, atol=4 * exact.abs().max().item() / 3000**0.5, rtol=0)


def test_keep_minus_drop_equals_two_passes():
    logits_of = torch.randn(5, 3)
    inputs, kept, labels = torch.randn(7, 3), logits_of, torch.randint(5, (7,))
    mask = torch.bernoulli(torch.full((5, 3), 0.5))
    weight = kept * mask
    result = keep_minus_drop(inputs @ weight.T, inputs, kept, weight, labels)
    for i, j in itertools.product(range(5), range(3)):
        ends = []
        for value in (kept[i, j], torch.tensor(0.0)):
            changed = weight.clone()
            changed[i, j] = value
            ends.append(-F.cross_entropy(inputs @ changed.T, labels, reduction="sum"))
        assert result[i, j].item() == pytest.approx((ends[0] - ends[1]).item(), abs=1e-4)


def test_hessian_diagonal_equals_torchs(tiny_model, stripes):
    weights = {site.name: torch.randn(site.shape) * 0.5 for site in tiny_model.sites}
    seen = Pass(stripes.images[:6], stripes.labels[:6], weights, 1.0, 60)
    ours = hessian_diagonal(tiny_model, seen, chunk=7)
    for name in ("patch_embed", "encoder.query", "classifier.out"):

        def loss(weight, name=name):
            logits = tiny_model.logits(seen.images, weights | {name: weight})
            return F.cross_entropy(logits, seen.labels, reduction="sum")

        full = torch.autograd.functional.hessian(loss, weights[name])
        n = weights[name].numel()
        torch.testing.assert_close(ours[name].flatten(), full.reshape(n, n).diagonal(), atol=1e-4, rtol=1e-3)


def test_levenberg_marquardt_is_squared_signals_times_squared_inputs(tiny_model, stripes):
    """Of every weight, from the signals and inputs of each linear layer, caught by an independent hook."""
    tiny_model.temperature = 0.1
    guide = LikelihoodGuided(tiny_model, initial_logit=30.0, initial_scale=1e-9, estimator="levenberg_marquardt")
    seen = seen_of(tiny_model, guide, stripes)
    with torch.no_grad():
        guide.estimator.update(guide, seen)
    site = {s.name: s for s in tiny_model.sites}
    weights = {name: weight.detach() for name, weight in seen.weights.items()}
    caught = []

    class Catch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is F.linear:
                out.retain_grad()
                caught.append((args[0].detach(), out))
            return out

    tiny_model.requires_grad_(True)
    with Catch():
        logits = tiny_model.logits(stripes.images, weights)
    F.cross_entropy(logits, stripes.labels, reduction="sum").backward()
    assert len(caught) == 1 + 6 * 2 + 2
    for index, (name, layer) in {0: ("patch_embed", None), 5: ("encoder.up", 0), 9: ("encoder.value", 1)}.items():
        x, out = caught[index]
        expected = torch.einsum("nto,nti->oi", out.grad**2, x**2)
        curvature = guide.estimator.curvature(site[name])
        ours = (curvature if layer is None else curvature[layer]).reshape(expected.shape)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3)


def test_squared_gradient_is_the_fisher_information_of_batches(toy):
    """Batches of one from a logistic regression: N E[g^2] has a closed form over the data."""
    network, data = toy
    model, guide = guided(network, data, "squared_gradient", decay=0.999)
    model.fix_masks({site.name: torch.ones(site.shape) for site in model.sites})
    guide.train()
    loss = TraceGraph_ELBO()(model, guide)
    for i in [i for _ in range(5) for i in range(IMAGES)]:
        loss(data.images[i : i + 1], data.labels[i : i + 1]).backward()
        seen = guide.seen
        guide.forget()
        with torch.no_grad():
            guide.estimator.update(guide, seen)
    exact = {site.name: 0.0 for site in model.sites}
    for i in range(IMAGES):
        weights = {site.name: guide.loc[site.key].detach().clone().requires_grad_() for site in model.sites}
        F.cross_entropy(model.logits(data.images[i : i + 1], weights), data.labels[i : i + 1]).backward()
        exact = {name: exact[name] + weights[name].grad ** 2 for name in exact}
    for site in model.sites:
        # the exponential average weighs the last batches more, by up to a fifth
        torch.testing.assert_close(guide.estimator.curvature(site), exact[site.name], rtol=0.2, atol=0.02)


def test_straight_through_and_none(toy):
    network, data = toy
    model, guide = guided(network, data, "straight_through")
    seen = seen_of(model, guide, data)
    with torch.no_grad():
        guide.estimator.update(guide, seen)
    for site in model.sites:
        pull = guide.estimator.pull(site, guide.slab(site))
        torch.testing.assert_close(pull, -guide.loc[site.key].detach() * seen.weights[site.name].grad)
    model, guide = guided(network, data, "none")
    assert all((guide.estimator.pull(site, guide.slab(site)) == 0).all() for site in model.sites)


def test_second_order_pulls_rank_weights_alike(toy):
    """At the maximum of the likelihood; a trained network's ranks are in benchmarks/mask_gradients.py."""
    network, data = toy
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=100, line_search_fn="strong_wolfe")
    for parameter in network.parameters():
        parameter.requires_grad_(True)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(network(data.images), data.labels)
        loss = loss + 1e-3 * sum(p.square().sum() for p in network.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    pulls = {}
    for name in ("squared_gradient", "levenberg_marquardt", "hessian_diagonal"):
        options = {"decay": 0.999} if name != "hessian_diagonal" else {}
        model, guide = guided(network, data, name, **options)
        model.fix_masks({site.name: torch.ones(site.shape) for site in model.sites})
        guide.train()
        loss = TraceGraph_ELBO()(model, guide)
        for i in range(IMAGES):
            loss(data.images[i : i + 1], data.labels[i : i + 1]).backward()
            seen = guide.seen
            guide.forget()
            with torch.no_grad():
                guide.estimator.update(guide, seen)
        whole = Pass(data.images, data.labels, seen.weights, 1.0, IMAGES)
        with torch.no_grad():
            guide.estimator.prepare(guide, whole)
        pulls[name] = torch.cat([guide.estimator.pull(s, guide.slab(s)).flatten() for s in model.sites]).detach()
    exact = pulls.pop("hessian_diagonal")
    for name, pull in pulls.items():
        assert scipy.stats.spearmanr(pull, exact).statistic > 0.8, name


def held_out_guide(network, data, other, logit=30.0, **options):
    model = IsingViT(network, IndependentSpikeSlab(network.weight_sites()), num_data=len(data))
    estimator = partial(HeldOut, held_out=(other.images, other.labels), **options)
    guide = LikelihoodGuided(model, initial_logit=logit, initial_scale=1e-6, estimator=estimator)
    seen = Pass(data.images, data.labels, {}, 1.0, len(data))
    with torch.no_grad():
        for _ in range(2000):
            guide.estimator.prepare(guide, seen)
    return model, guide


def test_held_out_gains_are_those_of_held_out_gradients(toy):
    """Slope and curvature against the gradients of single images, with all weights kept."""
    network, other = toy
    data = Images(other.images[:30], other.labels[:30], 2)
    model, guide = held_out_guide(network, data, other, decay=0.999, batch=5)
    gradients = {site.name: [] for site in model.sites}
    for i in range(IMAGES):
        weights = {site.name: guide.loc[site.key].detach().clone().requires_grad_() for site in model.sites}
        loss = F.cross_entropy(model.logits(other.images[i : i + 1], weights), other.labels[i : i + 1])
        for name, gradient in zip(weights, torch.autograd.grad(-loss, list(weights.values())), strict=True):
            gradients[name].append(gradient)
    for site in model.sites:
        each, mean = torch.stack(gradients[site.name]), guide.loc[site.key].detach()
        slope, curvature = 30 * each.mean(0), 30 * each.var(0, correction=0)
        expected = mean * slope + 0.5 * mean.square() * curvature
        found = guide.estimator.pull(site, guide.slab(site))
        # 2,000 batches with decay .999 count as some 1,700: 2.5 % of a slope's spread, 4 % of a curvature
        spread = mean.abs() * 30 * (each.var(0) / 5).sqrt() / 40 + 0.05 * mean.square() * curvature
        assert ((found - expected).abs() < 4 * spread + 1e-4).all()


@pytest.mark.parametrize("logit", [4.0, 0.0, -4.0])
def test_held_out_gains_are_the_same_whatever_the_masks_are(logit):
    """Of a linear network, whose weights do not interact: the gain of keeping one, by brute force."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([[0.2, -0.15, 0.1]]))

        def weight_sites(self):
            return [WeightSite("weight", (1, 3), ("out", "pixel"), ("pixel",), ("out",))]

        def forward(self, images):
            return images.flatten(1) @ self.weight.mT

    images = torch.eye(3).repeat(1000, 1).view(3000, 1, 1, 3)
    labels = images.flatten(1) @ torch.tensor([0.2, -0.03, 0.0]) + 0.5 * torch.randn(3000)
    other, network = Images(images, labels, 1), Linear()
    model = IsingViT(
        network, IndependentSpikeSlab(network.weight_sites()), 3000, likelihood=Regression(initial_scale=0.5)
    )
    estimator = partial(HeldOut, held_out=(other.images, other.labels), decay=0.999)
    guide = LikelihoodGuided(model, initial_logit=logit, initial_scale=0.03, estimator=estimator)
    with torch.no_grad():
        for _ in range(3000):
            guide.estimator.prepare(guide, Pass(images, other.labels, {}, 1.0, 3000))
        found = guide.estimator.pull(model.sites[0], guide.slab(model.sites[0])).squeeze(0)
        # log-likelihood of 3,000 images, in expectation over a weight that is kept, less that with it dropped
        mean, own = network.weight[0], other.labels.view(1000, 3)
        gain = (own.square() - (own - mean).square() - 0.03**2).sum(0) / (2 * 0.5**2)
    assert gain[0] > 50
    assert gain[2] < -10
    # The true curvature is 4,000. That from squared gradients is as much higher as the residuals of the draws are
    # larger, by up to .2 ** 2 / .5 ** 2 = 16 %; slopes of 1,700 batches are known to 2.5 % of the spread of one, 1,100.
    assert ((found - gain).abs() < 0.16 * 4000 * mean.square() / 2 + 4 * 0.025 * 1100 * mean.abs() + 2).all()


def test_a_weight_that_fits_noise_earns_nothing(toy):
    """A pixel is random in held-out images, but in training it gives the label away."""
    network, other = toy
    labels = other.labels
    told = other.images.clone()
    told[:, 0, 0, 2] = labels.float()
    with torch.no_grad():
        network.first.copy_(torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))
        network.second.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
    data, generator = Images(told, labels, 2), torch.Generator().manual_seed(0)
    fresh = Images(torch.rand(400, 1, 1, 3, generator=generator), torch.arange(400) % 2, 2)
    model, guide = held_out_guide(network, data, fresh)
    site = model.sites[0]
    assert float(guide.estimator.pull(site, guide.slab(site)).detach()[0, 2]) < 0
    model, guide = held_out_guide(network, data, Images(told.repeat(10, 1, 1, 1), labels.repeat(10), 2))
    assert float(guide.estimator.pull(site, guide.slab(site)).detach()[0, 2]) > 0


def test_a_fit_with_held_out_gains(toy):
    network, data = toy
    estimator = partial(HeldOut, held_out=(data.images[20:], data.labels[20:]), batch=7)
    model = IsingViT(network, IndependentSpikeSlab(network.weight_sites()))
    guide = LikelihoodGuided(model, estimator=estimator)
    config = FitConfig(steps=60, batch_size=5, pilot=0.2, temperature=0.1, device="cpu")
    posterior = fit(guide, data[torch.arange(20)], config=config, progress=False).posterior
    assert posterior.guide.estimator.settings() == {"decay": 0.98, "batch": 7, "held_out": "20 images"}
    probs = torch.cat([p.flatten() for p in posterior.inclusion_probabilities().values()])
    assert probs.min() < probs.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": (torch.rand(0, 1, 1, 3), torch.zeros(0))}, r"held_out: images of shape \(0, 1, 1, 3\)"),
        ({"held_out": (torch.rand(4, 1, 1, 3), torch.zeros(3))}, r"labels of shape \(3,\); give one label for each"),
        ({"held_out": (torch.rand(4, 1, 1, 3), torch.zeros(4)), "batch": 0}, "batch=0"),
        ({"held_out": torch.rand(4, 1, 1, 3)}, r"held_out=Tensor: give a pair of tensors"),
    ],
)
def test_wrong_held_out_images_are_refused(toy, options, message):
    model = IsingViT(toy[0], IndependentSpikeSlab(toy[0].weight_sites()))
    with pytest.raises(InputError, match=message):
        HeldOut(model, **options)
