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
from pyro_isingvit.couplings import Coupling
from pyro_isingvit.guides import (
    Auto,
    BackwardIsing,
    LowRank,
    PointEstimate,
    Relaxed,
    ScoreFunction,
    SparseVariationalDropout,
)
from pyro_isingvit.inference import compiled, search
from pyro_isingvit.inference.compiled import MOST, CompiledStep, _overlapping
from pyro_isingvit.inference.events import StepTaken
from pyro_isingvit.inference.traced import eager_step
from pyro_isingvit.interactions import CouplingGraph
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
from pyro_isingvit.network import WeightSite
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
    pyro.poutine.trace(guide).get_trace(*batch())  # makes lazy parameters
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


def assert_same(one, two, **tolerance):
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
    "mean field": (iv.MeanField, iv.IsingSpikeSlab),
    "relaxed": (Relaxed, iv.IsingSpikeSlab),
    "backward": (BackwardIsing, iv.IsingSpikeSlab),
    "low rank": (LowRank, iv.IsingSpikeSlab),
    "score function": (partial(ScoreFunction, baseline="none"), iv.IsingSpikeSlab),
    "decaying baseline": (partial(ScoreFunction, baseline="decaying_average"), iv.IsingSpikeSlab),
    "neural baseline": (partial(ScoreFunction, baseline="neural"), iv.IsingSpikeSlab),
}
"""Every prior and guide of benchmarks/catalogue.py."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_loss_and_gradients_are_those_of_the_eager_step(name):
    """To the last bit, as the graph is run by torch: also a guide's own state, and the random numbers used."""
    guide = program(*PROGRAMS[name])[1]
    other = copy.deepcopy(guide)
    (eager, _), (_, traced) = steps_of(guide), steps_of(other)
    for seed in (1, 2):
        assert_same(results(eager, guide, seed), results(traced, other, seed), rtol=0, atol=0)
        assert_same(guide.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("estimator", ["hessian_diagonal", "paired_draws", "straight_through", "disarm", "none"])
def test_estimators_learn_the_same(estimator):
    make = partial(iv.LikelihoodGuided, estimator=estimator, refresh_every=2)
    guides, states = [program(make)[1] for _ in range(2)], []
    for guide, step in zip(guides, (steps_of(guides[0])[0], steps_of(guides[1])[1]), strict=True):
        torch.manual_seed(1)
        with pyro.validation_enabled(False):
            for _ in range(2):
                step(*batch())
                guide.learn()
        states.append(guide.state_dict())
        assert guide._since_refresh == 0
    assert_same(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("likelihood", "labels"),
    [
        (iv.Classes((1.0, 2.0, 3.0)), torch.arange(10) % 3),
        (iv.Regression(3), torch.rand(10, 3, generator=torch.Generator().manual_seed(3))),
        (iv.SeveralLabels(), torch.arange(30).view(10, 3) % 2 == 0),
    ],
)
def test_likelihoods(likelihood, labels):
    guide = program(PointEstimate, Flat, likelihood=likelihood)[1]
    eager, traced = steps_of(guide)
    images = batch()[0], labels
    assert_same(results(eager, guide, images=images), results(traced, guide, images=images), rtol=0, atol=0)


def test_dropout_and_lower_precision():
    guide = program(PointEstimate, Flat, BLOCK.model_copy(update={"dropout": 0.3}))[1]
    loss, autocast = iv.TraceGraph_ELBO()(guide.model, guide), partial(torch.autocast, "cpu", torch.bfloat16)
    eager, traced = partial(eager_step, loss, autocast), CompiledStep(loss, autocast, uncompiled)
    found = results(eager, guide)
    assert_same(found, results(traced, guide), rtol=0, atol=0)
    assert found["loss"] != results(steps_of(guide)[0], guide)["loss"]


class Table(iv.IndependentSpikeSlab):
    """Inclusion probabilities in tensors that are neither parameters nor buffers."""

    def __init__(self, sites):
        super().__init__(sites, learn_slab_scale=True)
        self.table = [{site.name: torch.full((1,) * len(site.shape), 0.3) for site in sites}]

    def inclusion_of(self, site):
        return self.table[0][site.name]


def test_nothing_is_stale():
    """Whatever changes between steps, in place or not, the compiled step is the eager one."""
    model, guide = program(prior=Table)
    eager, traced = steps_of(guide)
    site = model.sites[3]
    changes = {
        "nothing": lambda: None,
        "logits": lambda: guide.logit[site.key].sub_(1.0),
        "logits that torch does not see change": lambda: guide.logit[site.key].data.sub_(1.0),
        "a parameter's tensor": lambda: setattr(guide.loc[site.key], "data", torch.ones(site.shape)),
        "a parameter": lambda: guide.loc.update({site.key: torch.nn.Parameter(torch.zeros(site.shape))}),
        "scales": lambda: [each.add_(1.0) for each in guide.log_scale.values()],
        "temperature": lambda: setattr(model, "temperature", 0.02),
        "prior's parameters": lambda: [each.add_(0.5) for each in model.prior.parameters()],
        "prior's table in place": lambda: model.prior.table[0][site.name].fill_(0.9),
        "prior's table": lambda: model.prior.table[0].update({site.name: torch.full((1,) * len(site.shape), 0.1)}),
        "network": lambda: model.network.classifier.out_bias.add_(torch.arange(3)),
        "a whole state": lambda: guide.load_state_dict({n: x + 0.1 for n, x in guide.state_dict().items()}),
    }
    losses = []
    for name, change in changes.items():
        with torch.no_grad():
            change()
        guide.forget()  # the eager step overlooks a change through ``.data``, see `MeanField`
        expected = results(eager, guide)
        assert_same(expected, results(traced, guide), rtol=0, atol=0)
        assert name == "nothing" or expected["loss"] not in losses, name
        losses.append(expected["loss"])
    assert len(traced._traced) == 1  # all of them without tracing again
    model.num_data = 600
    assert_same(results(eager, guide), results(traced, guide), rtol=0, atol=0)
    assert len(traced._traced) == 2


def test_masks_that_are_fixed_are_followed():
    model, guide = program(iv.MeanField, partial(iv.IsingSpikeSlab, weighting="magnitude"))
    eager, traced = steps_of(guide)
    draws = [{name: (torch.rand(shape) < 0.5).float() for name, shape in guide.mask_shapes.items()} for _ in range(2)]
    for masks in (*draws, None, draws[0], None):
        model.fix_masks(masks)
        if masks is None:  # of the interaction, which fixed masks do without
            model.prior.interaction.observe_weights({site.name: guide.loc[site.key] for site in model.sites})
        found = results(eager, guide)
        assert_same(found, results(traced, guide), rtol=0, atol=0)
        assert any(name.startswith("MeanField.logit") for name in found) == (masks is None)
    assert len(traced._traced) == 2


def test_a_number_that_changes_is_traced_anew_until_it_changes_too_often():
    guide = program(PointEstimate, Flat)[1]
    eager, traced = steps_of(guide)
    guide.dropconnect = 0.1
    for step in range(MOST):
        guide.dropconnect += 0.01
        if step < 2 or step == MOST - 1:
            assert_same(results(eager, guide), results(traced, guide), rtol=0, atol=0)
        else:
            traced._traced[traced._structure(*batch())] = None
    guide.dropconnect = 0.5
    with pytest.raises(iv.InputError, match=r"guide=PointEstimate and prior=Flat changes too often in .*dropconnect"):
        results(traced, guide)


def test_with_validation_it_is_the_eager_step():
    guide = program()[1]
    losses = []
    for step in steps_of(guide):
        torch.manual_seed(1)
        with pyro.validation_enabled(True):
            losses.append(step(*batch()))
    assert torch.equal(*losses)
    assert losses[0] != results(steps_of(guide)[0], guide)["loss"]  # site by site, in place of one joint draw


class Reading(iv.IndependentSpikeSlab):
    def inclusion_of(self, site):
        return float((self.zero + 1) / 4)


class Blind(iv.LikelihoodGuided):
    def see(self, passing):
        return None


def _closure(sites):
    table, prior = torch.ones(()), iv.IndependentSpikeSlab(sites)
    prior.interaction = Interaction(lambda masks: (table * masks["encoder.up"]).mean())
    return prior


@pytest.mark.parametrize(
    ("guide", "prior", "message"),
    [
        (
            partial(iv.LikelihoodGuided, estimator="levenberg_marquardt"),
            iv.IsingSpikeSlab,
            r"guide=LikelihoodGuided\(estimator=LevenbergMarquardt\) .*'squared_gradient', or compile=False",
        ),
        (iv.MeanField, Reading, r"prior=Reading makes a number of a tensor .*: keep it a tensor, or compile=False"),
        (Blind, iv.IsingSpikeSlab, r"guide=Blind\(.*super\(\)\.see"),
        (iv.MeanField, _closure, r"a tensor of shape \(\) that no module holds: register it as a buffer"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(guide, prior, message):
    guide = program(guide, prior)[1]
    with pytest.raises(iv.InputError, match=message):
        results(steps_of(guide)[1], guide)


def test_a_fit_refuses_before_its_first_step(stripes):
    guide = pair(estimator="levenberg_marquardt")[1]
    before, steps = copy.deepcopy(guide.state_dict()), []
    with pytest.raises(iv.InputError, match="LevenbergMarquardt"):
        iv.fit(guide, stripes, config=iv.FitConfig(**QUICK, compile=True), progress=False, listeners=[steps.append])
    assert not any(isinstance(event, StepTaken) for event in steps)
    assert_same(before, guide.state_dict(), rtol=0, atol=0)


def test_a_fit_ends_with_the_same_bits(stripes, monkeypatch):
    """Through all phases: the guide learns, and the temperature is searched for."""
    graphs = []
    monkeypatch.setattr(compiled, "inductor", lambda graph, inputs: graphs.append(graph) or graph)
    monkeypatch.setattr(search, "LEAST", 4)
    settings = QUICK | {"temperature": "auto", "steps": 40, "pilot": 0.3, "fine_tune": 0.2}
    fitted = []
    for compile in (False, True):
        guide = pair()[1]
        config = iv.FitConfig(**settings, compile=compile)
        fitted.append(iv.fit(guide, stripes, stripes, config, False).posterior)
    assert_same(fitted[0].guide.state_dict(), fitted[1].guide.state_dict(), rtol=0, atol=0)
    assert_same(fitted[0].model.state_dict(), fitted[1].model.state_dict(), rtol=0, atol=0)
    assert len(graphs) == 2  # one without fixed masks, and one with, for the first phase and the last


def test_a_compiled_fit_goes_on_from_its_checkpoint_to_the_same_bits(stripes, monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "inductor", lambda graph, inputs: graph)
    config = iv.FitConfig(**QUICK | {"steps": 40, "pilot": 0.3}, compile=True)

    def go(stop=None, **saving):
        def listen(event):
            if isinstance(event, StepTaken) and event.step == stop:
                raise KeyboardInterrupt

        guide = pair()[1]
        return guide, iv.fit(guide, stripes, config=config, progress=False, listeners=[listen], **saving)

    saving = {"checkpoint": tmp_path / "saved", "interval": 0.0}
    with pytest.raises(KeyboardInterrupt):
        go(stop=25, **saving)
    again, whole = go(resume=True, **saving)[0], go()[0]
    assert_same(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert_same(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_compiled_steps_have_no_loss_scale():
    with pytest.raises(iv.InputError, match="compile=True and precision='float16': use precision='bfloat16'"):
        iv.FitConfig(compile=True, precision="float16")


def test_outputs_that_share_memory_are_found():
    x = torch.zeros(4, 6)
    outputs = [x[:2], x[2:], x[1:3], torch.zeros(()).expand(3), torch.zeros(3), torch.zeros(0)]
    assert _overlapping(outputs, [torch.zeros(2)]) == [2, 3]
    assert _overlapping([x], [x[3]]) == [0]


class Small(torch.nn.Module):
    """Two layers, for which Inductor has little to compile."""

    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Parameter(0.3 * torch.randn(5, 16))
        self.out = torch.nn.Parameter(0.3 * torch.randn(3, 5))
        self.bias = torch.nn.Parameter(torch.zeros(3))

    def forward(self, images):
        hidden = (images.flatten(1) @ self.hidden.T).tanh()
        return torch.nn.functional.dropout(hidden, 0.2, self.training) @ self.out.T + self.bias

    def weight_sites(self):
        return [
            WeightSite("hidden", (5, 16), ("unit", "pixel"), ("pixel",), ("unit",)),
            WeightSite("out", (3, 5), ("class", "unit"), ("unit",), ("class",)),
        ]


def small():
    torch.manual_seed(0)
    network = Small()
    sites = network.weight_sites()
    graph = CouplingGraph(sites, [Coupling("hidden", "out", ("unit",))])
    model = iv.IsingViT(network, iv.IsingSpikeSlab(sites, couplings=graph, coupling=0.5), 60, 0.1)
    return iv.LikelihoodGuided(model).train()


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_inductor_gives_the_same_to_rounding():
    guide = small()
    eager, traced = steps_of(guide, None)
    for seed in (1, 2):
        assert_same(results(eager, guide, seed), results(traced, guide, seed), rtol=2e-5, atol=2e-5)
        guide.model.temperature = 0.3
        for logit in guide.logit.values():
            logit.sub_(3.0)


def test_a_missing_compiler_is_named(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "/no/compiler"))
    guide = small()
    with pytest.raises(iv.InputError, match=r"compile=True: no working C\+\+ compiler .*install g\+\+"):
        results(steps_of(guide, None)[1], guide)
