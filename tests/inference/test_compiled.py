"""Compiled steps: the same losses and gradients as eager ones, nothing stale, and refusals by name.

Most tests run the traced graph as it is, without Inductor, which takes half a minute for each graph.
"""

import copy
import shutil
from contextlib import nullcontext
from functools import partial

import pyro
import pytest
import torch

import pyro_isingvit as iv
from pyro_isingvit.guides import (
    Auto,
    BackwardIsing,
    LowRank,
    PointEstimate,
    Relaxed,
    ScoreFunction,
    SparseVariationalDropout,
)
from pyro_isingvit.guides.estimators import SquaredGradient
from pyro_isingvit.inference import compiled
from pyro_isingvit.inference.compiled import MOST, CompiledStep, _overlapping
from pyro_isingvit.inference.traced import eager_step
from pyro_isingvit.models.priors import (
    BackwardIsingSpikeSlab,
    FeatureSpikeSlab,
    Flat,
    HierarchicalSpikeSlab,
    Interaction,
    LatticeSpikeSlab,
    LogUniform,
    RegularisedHorseshoe,
)
from tests.conftest import QUICK, TINY, pair

BLOCK = TINY.model_copy(update={"depth": 1})


def program(guide=iv.LikelihoodGuided, prior=iv.IsingSpikeSlab, config=BLOCK, likelihood=None):
    """A model and guide with 60 images at temperature 0.1, in training mode, whose masks are neither all on nor off."""
    torch.manual_seed(0)
    network = iv.ViT(config)
    model = iv.IsingViT(network, prior(network.weight_sites()), 60, 0.1, likelihood)
    guide = guide(model)
    for name, parameter in guide.named_parameters():
        if name.startswith("logit"):
            parameter.data.sub_(4 + 0.3 * torch.randn_like(parameter))
    guide(*batch())  # makes lazy parameters
    model.train()
    return model, guide.train()


def batch(size=10):
    return torch.rand(size, 1, 4, 4, generator=torch.Generator().manual_seed(7)), torch.arange(size) % 3


def uncompiled(graph, inputs):
    return graph


def steps_of(guide, compiler=uncompiled):
    """The eager and the compiled step of one guide."""
    loss = iv.TraceGraph_ELBO()(guide.model, guide)
    return partial(eager_step, loss, nullcontext), CompiledStep(loss, nullcontext, compiler)


def results(step, guide, seed=1, images=batch()):
    """Loss, gradients and what the guide saw of a step, by name; and the next random number."""
    torch.manual_seed(seed)
    with pyro.validation_enabled(False):
        found = {"loss": step(*images), "random": torch.rand(())}
    for part in (guide, guide.model):
        for name, parameter in part.named_parameters():
            if parameter.grad is not None:
                found[f"{type(part).__name__}.{name}"], parameter.grad = parameter.grad, None
    if guide.seen is not None:
        for name, weight in guide.seen.weights.items():
            found[f"{name} entered"], found[f"{name} entered, gradient"] = weight.detach(), weight.grad
        found["passing"] = torch.tensor([guide.seen.temperature, guide.seen.num_data, len(guide.seen.images)])
        guide.seen = None
    return found


def same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


PROGRAMS = {
    "ising": (iv.LikelihoodGuided, iv.IsingSpikeSlab),
    "magnitude": (iv.LikelihoodGuided, partial(iv.IsingSpikeSlab, weighting="magnitude")),
    "learned coupling": (iv.LikelihoodGuided, partial(iv.IsingSpikeSlab, coupling=0.5, learn_coupling=True)),
    "directed": (iv.LikelihoodGuided, BackwardIsingSpikeSlab),
    "independent": (iv.LikelihoodGuided, iv.IndependentSpikeSlab),
    "learned slabs": (iv.LikelihoodGuided, partial(iv.IndependentSpikeSlab, learn_slab_scale=True)),
    "spikes": (iv.LikelihoodGuided, partial(iv.IndependentSpikeSlab, spike_scale=0.1)),
    "by block": (iv.LikelihoodGuided, partial(iv.IndependentSpikeSlab, inclusion={"encoder.up": [0.3]})),
    "hierarchical": (iv.LikelihoodGuided, HierarchicalSpikeSlab),
    "structured": (iv.LikelihoodGuided, iv.StructuredSpikeSlab),
    "features": (iv.LikelihoodGuided, FeatureSpikeSlab),
    "lattice": (iv.LikelihoodGuided, LatticeSpikeSlab),
    "horseshoe": (iv.MeanField, RegularisedHorseshoe),
    "automatic horseshoe": (Auto, RegularisedHorseshoe),
    "automatic": (Auto, iv.Prior),
    "log-uniform": (SparseVariationalDropout, LogUniform),
    "deterministic": (PointEstimate, Flat),
    "dropconnect": (partial(PointEstimate, dropconnect=0.2), Flat),
    "hessian_diagonal": (partial(iv.LikelihoodGuided, estimator="hessian_diagonal"), iv.IsingSpikeSlab),
    "paired_draws": (partial(iv.LikelihoodGuided, estimator="paired_draws"), iv.IsingSpikeSlab),
    "straight_through": (partial(iv.LikelihoodGuided, estimator="straight_through"), iv.IsingSpikeSlab),
    "disarm": (partial(iv.LikelihoodGuided, estimator="disarm"), iv.IsingSpikeSlab),
    "none": (partial(iv.LikelihoodGuided, estimator="none"), iv.IsingSpikeSlab),
    "mean field": (iv.MeanField, iv.IsingSpikeSlab),
    "relaxed": (Relaxed, iv.IsingSpikeSlab),
    "backward": (BackwardIsing, iv.IsingSpikeSlab),
    "low rank": (LowRank, iv.IsingSpikeSlab),
    "score function": (partial(ScoreFunction, baseline="none"), iv.IsingSpikeSlab),
    "decaying baseline": (partial(ScoreFunction, baseline="decaying_average"), iv.IsingSpikeSlab),
    "neural baseline": (partial(ScoreFunction, baseline="neural"), iv.IsingSpikeSlab),
}
"""Every prior, guide and estimator of benchmarks/catalogue.py that is taken, and some options."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_loss_and_gradients_are_those_of_the_eager_step(name):
    """To the last bit, as the graph is run by torch: also a guide's own state, and the random numbers used."""
    guide = program(*PROGRAMS[name])[1]
    other = copy.deepcopy(guide)
    (eager, _), (_, traced) = steps_of(guide), steps_of(other)
    for seed in (1, 2):
        same(results(eager, guide, seed), results(traced, other, seed), rtol=0, atol=0)
        same(guide.state_dict(), other.state_dict(), rtol=0, atol=0)
