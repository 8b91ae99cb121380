"""Estimators of the likelihood's pull against enumeration, closed forms and brute force."""

import itertools

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from pyro_isingvit import Images, LikelihoodGuided, TraceGraph_ELBO
from pyro_isingvit.guides.estimators import ESTIMATORS
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
