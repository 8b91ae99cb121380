"""Masks and weights that are drawn at once: the same distribution and loss as the Pyro program, site by site."""

import copy
from functools import partial

import pyro
import pytest
import torch
from torch.distributions import kl_divergence

import pyro_isingvit as iv
from pyro_isingvit.distributions import Gaussian
from pyro_isingvit.guides import BackwardIsing, LowRank, Relaxed, ScoreFunction
from pyro_isingvit.models.priors import FeatureSpikeSlab, StructuredSpikeSlab
from pyro_isingvit.testing import ENUMERABLE, TINY, all_masks

DRAWS = 400


def pair(guide=iv.MeanField, prior=iv.IsingSpikeSlab, config=TINY, **options):
    torch.manual_seed(0)
    network = iv.ViT(config)
    model = iv.IsingViT(network, prior(network.weight_sites(), **options), num_data=60, temperature=0.1)
    guide = guide(model)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if name.startswith(("logit", "loc", "log_scale")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            if name.startswith("logit"):
                parameter.sub_(4.0)
            if name.startswith("log_scale"):
                parameter.add_(2.0)
    return model, guide


def losses_and_gradients(model, guide, images, labels, checked):
    """Losses and gradients of many draws, (draws,) and (draws, parameters)."""
    torch.manual_seed(1)
    loss = iv.TraceGraph_ELBO()(model, guide)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    losses, gradients = [], []
    for _ in range(DRAWS):
        with pyro.validation_enabled(checked):
            value = loss(images, labels)
        losses.append(float(value.detach()))
        found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([each.flatten() for each in found]))
    return torch.tensor(losses), torch.stack(gradients)


@pytest.mark.parametrize(
    ("prior", "options"),
    [
        (
            iv.IsingSpikeSlab,
            {"inclusion": {"encoder.up": [0.1, 0.3]}, "weighting": "magnitude", "learn_slab_scale": True},
        ),
        (StructuredSpikeSlab, {}),
        (FeatureSpikeSlab, {}),
    ],
)
@pytest.mark.parametrize("guide", [iv.MeanField, iv.LikelihoodGuided])
def test_loss_and_gradient_have_the_expectation_of_the_pyro_program(guide, prior, options):
    model, guide = pair(guide, prior, **options)
    model.temperature = 1e6  # the likelihood is the same in both, and its noise would hide a difference
    guide.eval()  # does not learn between draws
    images, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 3
    one, of_one = losses_and_gradients(model, guide, images, labels, checked=False)
    two, of_two = losses_and_gradients(model, guide, images, labels, checked=True)
    assert guide.draw_jointly() is not None
    error = ((one.var() + two.var()) / DRAWS).sqrt()
    assert abs(one.mean() - two.mean()) < 4 * error
    assert one.std() < 1.1 * two.std()
    errors = ((of_one.var(0) + of_two.var(0)) / DRAWS).sqrt()
    off = (of_one.mean(0) - of_two.mean(0)).abs() / errors.clamp_min(1e-9)
    assert off.square().mean() < 1.4  # its expectation is 1
    assert (off < 6).all()


def test_divergence_of_masks_is_the_sum_over_all_states():
    model, guide = pair(config=ENUMERABLE, coupling=0.4)
    draw, sites = guide.draw_jointly(), {site.name: site for site in model.sites}
    exact = energy = 0.0
    for masks in all_masks(guide):
        log_q = guide.mask_log_prob(masks)
        log_p = sum(model.prior.mask(sites[name]).log_prob(mask) for name, mask in masks.items())
        exact += log_q.exp() * (log_q - log_p)
        energy += log_q.exp() * model.prior.interaction.energy(masks)
    bases = [model.prior.mask(site) for site in model.sites]
    torch.testing.assert_close(draw.of_masks.divergence(lambda: bases), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(draw.expected_energy(model.prior.interaction), energy, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("unit_scales", [False, True])
def test_divergence_of_weights_is_that_of_their_distributions(unit_scales):
    model, guide = pair(partial(iv.MeanField, unit_scales=unit_scales), slab_scale=0.7)
    draw = guide.draw_jointly()
    priors = [model.prior.weight(site, draw.masks[site.name]) for site in model.sites]
    slabs = [prior.slab for prior in priors]
    exact = sum(
        kl_divergence(guide.weight(site, draw.masks[site.name]), prior)
        for site, prior in zip(model.sites, priors, strict=True)
    )
    torch.testing.assert_close(draw.of_weights.divergence(lambda: slabs), exact)


@pytest.mark.parametrize("unit_scales", [False, True])
def test_draws_have_the_moments_of_their_distributions(unit_scales):
    model, guide = pair(partial(iv.MeanField, unit_scales=unit_scales))
    with torch.no_grad():
        draws = [guide.draw_jointly() for _ in range(DRAWS)]
    for site in model.sites:
        masks = torch.stack([draw.masks[site.name] for draw in draws])
        assert ((masks == 0) | (masks == 1)).all()
        p = guide.inclusion_probabilities()[site.name]
        assert ((masks.mean(0) - p).abs() < 5 * (p * (1 - p) / DRAWS).sqrt() + 1e-3).all()
        weights = torch.stack([draw.weights[site.name] for draw in draws])
        assert (weights[masks == 0] == 0).all()
        noise = (weights - guide.loc[site.key]) / guide.log_scale[site.key].exp()
        kept = noise[masks == 1]
        assert abs(kept.mean()) < 5 / len(kept) ** 0.5
        assert abs(kept.std() - 1) < 5 / len(kept) ** 0.5


def test_what_is_kept_between_steps_follows_every_change():
    guide = pair(iv.LikelihoodGuided)[1]
    other = copy.deepcopy(guide)
    before = guide.draw_jointly().of_masks
    assert guide.draw_jointly().of_masks is before
    for change in (
        lambda: guide.logit["encoder_up"].fill_(3.0),
        lambda: guide.load_state_dict(other.state_dict()),
        lambda: setattr(guide.logit["encoder_up"], "data", torch.full_like(guide.logit["encoder_up"], -2.0)),
    ):
        with torch.no_grad():
            change()
        probs = guide.draw_jointly().of_masks.by_site(guide.draw_jointly().of_masks.probs)
        torch.testing.assert_close(probs["encoder.up"], guide.inclusion_probabilities()["encoder.up"])


class OneScale(iv.MeanField):
    def slab(self, site):
        return Gaussian(self.loc[site.key], self.log_scale[site.key].mean())


class Heavy(iv.IsingSpikeSlab):
    def slab(self, site):
        return pyro.distributions.StudentT(4.0, self.zero.expand(site.shape), site.fan_in**-0.5)


class Half(iv.IsingSpikeSlab):
    def inclusion_of(self, site):
        return pyro.sample(f"{site.name}.inclusion", pyro.distributions.Beta(self.zero + 1, self.zero + 4))


@pytest.mark.parametrize(
    ("guide", "prior", "options"),
    [
        (OneScale, iv.IsingSpikeSlab, {}),
        (Relaxed, iv.IsingSpikeSlab, {}),
        (LowRank, iv.IsingSpikeSlab, {}),
        (BackwardIsing, iv.IsingSpikeSlab, {}),
        (ScoreFunction, iv.IsingSpikeSlab, {}),
        (iv.LikelihoodGuided, Heavy, {}),
        (iv.MeanField, Heavy, {}),
        (iv.LikelihoodGuided, iv.IsingSpikeSlab, {"spike_scale": 0.01}),
    ],
)
def test_whatever_has_no_closed_form_runs_as_a_pyro_program(guide, prior, options):
    model, guide = pair(guide, prior, **options)
    assert guide.draw_jointly() is None
    trace = pyro.poutine.trace(guide).get_trace()
    assert {f"{site.name}.weight" for site in model.sites} <= set(trace.nodes)


def test_networks_with_sites_without_masks_and_with_fixed_masks():
    model, guide = pair(iv.LikelihoodGuided, FeatureSpikeSlab)
    bare = [site.name for site in model.sites if site.name not in guide.mask_shapes]
    draw = guide.draw_jointly()
    assert bare
    assert not set(bare) & set(draw.masks)
    assert all(bool((draw.weights[name] != 0).all()) for name in bare)
    off = {name: torch.zeros(shape) for name, shape in guide.mask_shapes.items()}
    model.fix_masks(off)
    fixed = guide.draw_jointly()
    assert fixed.of_masks is None
    assert all(not fixed.weights[name].any() for name in off)
    loss = iv.TraceGraph_ELBO()(model, guide)(torch.rand(5, 1, 4, 4), torch.arange(5) % 3)
    assert loss.isfinite()


@pytest.mark.parametrize("options", [{"learn_coupling": True}, {"learn_slab_scale": True}])
def test_a_loss_without_gradients_takes_none_from_the_next(options):
    """What is kept between draws has no gradients, so a learned prior's is not kept, whoever asked first."""
    gradients = []
    for asked in (False, True):
        model, guide = pair(iv.LikelihoodGuided, coupling=0.1, **options)
        guide.eval()
        loss = iv.TraceGraph_ELBO()(model, guide)
        images, labels = torch.rand(5, 1, 4, 4), torch.arange(5) % 3
        with pyro.validation_enabled(False):
            if asked:
                with torch.no_grad():
                    loss(images, labels)
            torch.manual_seed(1)
            loss(images, labels).backward()
        gradients.append([p.grad for p in model.prior.parameters() if p.requires_grad])
    assert gradients[0]
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
