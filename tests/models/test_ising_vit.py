"""The model's log joint term by term, its sites, and what Pyro users expect of it."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_isingvit import (
    IndependentSpikeSlab,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    MeanField,
    Prior,
    TraceGraph_ELBO,
    ViT,
    ViTConfig,
)
from pyro_isingvit.models import Interaction


def trace_of(model, *args):
    return poutine.trace(model).get_trace(*args)


def test_sites_and_their_shapes(tiny_model, stripes):
    trace = trace_of(tiny_model, stripes.images, stripes.labels)
    names = [site.name for site in tiny_model.sites]
    expected = {f"{n}.mask" for n in names} | {f"{n}.weight" for n in names} | {"ising", "label"}
    sampled = {name for name, node in trace.nodes.items() if node["type"] == "sample" and name != "data"}
    assert sampled == expected
    for site in tiny_model.sites:
        mask, weight = (trace.nodes[name]["value"] for name in (site.mask_name, site.weight_name))
        assert mask.shape == weight.shape == site.shape
        assert ((weight != 0) <= (mask == 1)).all()


def test_log_joint_is_the_sum_of_its_terms(tiny_network, stripes):
    temperature, coupling, inclusion = 0.01, 0.7, 0.3
    prior = IsingSpikeSlab(tiny_network.weight_sites(), inclusion=inclusion, coupling=coupling)
    model = IsingViT(tiny_network, prior, num_data=60, temperature=temperature)
    batch = slice(0, 20)
    images, labels = stripes.images[batch], stripes.labels[batch]
    trace = trace_of(model, images, labels)
    masks = {s.name: trace.nodes[s.mask_name]["value"] for s in model.sites}
    weights = {s.name: trace.nodes[s.weight_name]["value"] for s in model.sites}
    expected = coupling * prior.couplings.energy(masks)
    for site in model.sites:
        expected = expected + dist.Bernoulli(inclusion).log_prob(masks[site.name]).sum()
        slab = dist.Normal(0, site.fan_in**-0.5).log_prob(weights[site.name])
        expected = expected + (slab * masks[site.name]).sum()
    with torch.no_grad():
        for site in model.sites:
            tiny_network.get_parameter(site.name).copy_(weights[site.name])
    log_likelihood = -F.cross_entropy(tiny_network(images), labels, reduction="sum")
    expected = expected + 60 / 20 * log_likelihood / temperature
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_factor_by_difference(tiny_network, stripes):
    """Same draws, two couplings: the losses differ by exactly the difference of the energies."""
    prior = IsingSpikeSlab(tiny_network.weight_sites())
    model = IsingViT(tiny_network, prior, num_data=60)
    guide = MeanField(model, initial_logit=0.0)
    losses = {}
    for prior.coupling in (0.0, 0.4):
        torch.manual_seed(5)
        losses[prior.coupling] = TraceGraph_ELBO().loss(model, guide, stripes.images, stripes.labels)
    torch.manual_seed(5)
    drawn = trace_of(guide)
    energy = prior.couplings.energy({s.name: drawn.nodes[s.mask_name]["value"] for s in model.sites}).item()
    assert abs(energy) > 0.1
    assert losses[0.0] - losses[0.4] == pytest.approx(0.4 * energy, abs=1e-3)


def test_temperature_scales_the_likelihood_alone(tiny_model, stripes):
    guide = MeanField(tiny_model)
    terms = {}
    for temperature in (1.0, 0.5, 0.25):
        tiny_model.temperature = temperature
        torch.manual_seed(1)
        terms[temperature] = TraceGraph_ELBO().loss(tiny_model, guide, stripes.images, stripes.labels)
    log_likelihood = terms[1.0] - terms[0.5]
    assert terms[0.5] - terms[0.25] == pytest.approx(2 * log_likelihood, rel=1e-4)


@pytest.mark.parametrize("family", [MeanField, LikelihoodGuided])
def test_plain_svi(tiny_model, stripes, family):
    """The idiom of Pyro's tutorials, without our `fit`; nothing ends up in the global store."""
    pyro.clear_param_store()
    guide = family(tiny_model)
    tiny_model.temperature = 1e-3
    before = {name: p.clone() for module in (tiny_model, guide) for name, p in module.named_parameters()}
    svi = pyro.infer.SVI(tiny_model, guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.TraceGraph_ELBO())
    losses = [svi.step(stripes.images, stripes.labels) for _ in range(120)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    for module in (tiny_model, guide):
        for name, parameter in module.named_parameters():
            assert (not torch.equal(parameter, before[name])) == (
                parameter.requires_grad or name.startswith(("logit", "log_scale", "estimator"))
            ), name
    assert not list(pyro.get_param_store().keys())


def test_a_second_guide_of_a_class_starts_afresh(tiny_model, stripes):
    first = MeanField(tiny_model)
    svi = pyro.infer.SVI(tiny_model, first, pyro.optim.Adam({"lr": 0.1}), pyro.infer.TraceGraph_ELBO())
    svi.step(stripes.images, stripes.labels)
    second = MeanField(tiny_model)
    second(stripes.images)
    assert (second.logit["classifier_out"] == 4.0).all()
    assert not (first.logit["classifier_out"] == 4.0).all()


def test_fixed_masks_are_conditioned_on(tiny_model, stripes):
    masks = {site.name: torch.zeros(site.shape) for site in tiny_model.sites}
    masks["classifier.out"] = torch.ones_like(masks["classifier.out"])
    tiny_model.fix_masks(masks)
    for program in (tiny_model, MeanField(tiny_model)):
        trace = trace_of(program, stripes.images, stripes.labels)
        assert not any(name.endswith(".mask") for name in trace.nodes)
        assert (trace.nodes["patch_embed.weight"]["value"] == 0).all()
        assert (trace.nodes["classifier.out.weight"]["value"] != 0).all()


class Watching(MeanField):
    """A guide that is shown the passes of training."""

    watches = True


def test_gradients_seen_are_the_likelihoods_alone(tiny_network, stripes):
    """The gradient of the sampled weight itself also holds its prior's: here that is made huge."""
    prior = IndependentSpikeSlab(tiny_network.weight_sites(), slab_scale=1e-3)
    model = IsingViT(tiny_network, prior)
    guide = Watching(model, initial_scale=1e-6)
    model.fix_masks({site.name: torch.ones(site.shape) for site in model.sites})
    TraceGraph_ELBO()(model, guide)(stripes.images, stripes.labels).backward()
    plain = {site.name: guide.loc[site.key].detach().clone().requires_grad_() for site in model.sites}
    F.cross_entropy(model.logits(stripes.images, plain), stripes.labels, reduction="sum").backward()
    assert guide.seen.images is stripes.images
    assert guide.seen.weights.keys() == plain.keys()
    for name, weight in guide.seen.weights.items():
        torch.testing.assert_close(weight.grad, plain[name].grad, atol=1e-3, rtol=1e-3)
    assert copy.deepcopy(guide).seen is None


def test_prior_predictive_labels(tiny_model, stripes):
    trace = trace_of(tiny_model, stripes.images)
    assert trace.nodes["label"]["value"].shape == (60,)


def test_a_learned_interaction_needs_a_normaliser(tiny_network, stripes):
    class Learned(Interaction):
        def __init__(self):
            super().__init__()
            self.strength = nn.Parameter(torch.tensor(1.0))

        def energy(self, masks):
            return self.strength * masks["encoder.up"].mean() * masks["encoder.down"].mean()

    prior = IndependentSpikeSlab(tiny_network.weight_sites())
    prior.interaction = Learned()
    model = IsingViT(tiny_network, prior)
    with pytest.raises(NotImplementedError, match=r"Learned.energy or .* learned parameters.*log_normaliser"):
        model(stripes.images, stripes.labels)


def test_a_prior_without_masks(tiny_network, stripes):
    model = IsingViT(tiny_network, Prior(tiny_network.weight_sites()))
    guide = MeanField(model)
    assert guide.inclusion_probabilities() == {}
    loss = TraceGraph_ELBO()(model, guide)(stripes.images, stripes.labels)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in guide.parameters())


def test_a_prior_for_another_network_is_refused(tiny_network):
    other = ViT(ViTConfig(depth=1)).weight_sites()
    with pytest.raises(InputError, match=r"build it from network.weight_sites"):
        IsingViT(tiny_network, IsingSpikeSlab(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inclusion": 0.0}, "inclusion=0.0"),
        ({"inclusion": 1.5}, "inclusion=1.5"),
        ({"slab_scale": -1.0}, "slab_scale=-1.0"),
        ({"spike_scale": 2.0}, "spike_scale=2.0"),
    ],
)
def test_impossible_priors_are_refused(tiny_network, options, message):
    with pytest.raises(InputError, match=message):
        IndependentSpikeSlab(tiny_network.weight_sites(), **options)
