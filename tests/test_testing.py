"""All our own priors and guides through the suite that users inherit, and the errors of pairs that do not match."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_isingvit import (
    CouplingGraph,
    FitConfig,
    InputError,
    fit,
)
from pyro_isingvit.couplings import VIT_COUPLINGS
from pyro_isingvit.guides import (
    Auto,
    BackwardIsing,
    LikelihoodGuided,
    LowRank,
    MeanField,
    PointEstimate,
    Relaxed,
    ScoreFunction,
    SparseVariationalDropout,
)
from pyro_isingvit.guides.backward_ising import MARGINAL_DRAWS
from pyro_isingvit.models import (
    BackwardIsingSpikeSlab,
    Flat,
    HierarchicalSpikeSlab,
    IndependentSpikeSlab,
    Interaction,
    IsingSpikeSlab,
    IsingViT,
    LatticeSpikeSlab,
    LogUniform,
    Prior,
    RegularisedHorseshoe,
    StructuredSpikeSlab,
)
from pyro_isingvit.testing import GuideConformance, PriorConformance

PRIORS = {
    "plain": Prior,
    "independent": IndependentSpikeSlab,
    "continuous_spike": partial(IndependentSpikeSlab, spike_scale=0.1),
    "learned_slab": partial(IndependentSpikeSlab, learn_slab_scale=True),
    "ising": partial(IsingSpikeSlab, coupling=0.5),
    "ising_magnitude": partial(IsingSpikeSlab, coupling=0.5, weighting="magnitude"),
    "ising_backward": BackwardIsingSpikeSlab,
    "ising_learned": partial(IsingSpikeSlab, coupling=0.3, learn_coupling=True),
    "hierarchical": HierarchicalSpikeSlab,
    "structured": partial(StructuredSpikeSlab, coupling=0.3),
    "lattice": LatticeSpikeSlab,
    "horseshoe": RegularisedHorseshoe,
}

GUIDES = {
    "mean_field": MeanField,
    "likelihood_guided": LikelihoodGuided,
    "unit_scales": partial(LikelihoodGuided, unit_scales=True),
    "levenberg_marquardt": partial(LikelihoodGuided, estimator="levenberg_marquardt"),
    "paired_draws": partial(LikelihoodGuided, estimator="paired_draws"),
    "disarm": partial(LikelihoodGuided, estimator="disarm"),
    "backward_ising": partial(BackwardIsing, initial_strength=0.3),
    "low_rank": LowRank,
    "relaxed": Relaxed,
    "score_function": partial(ScoreFunction, baseline="none"),
    "score_function_average": ScoreFunction,
    "score_function_neural": partial(ScoreFunction, baseline="neural"),
}


class TestPriors(PriorConformance):
    @pytest.fixture(autouse=True, params=PRIORS)
    def _prior(self, request):
        self.prior = PRIORS[request.param]

    def make_prior(self, sites):
        return self.prior(sites)


class TestGuides(GuideConformance):
    @pytest.fixture(autouse=True, params=GUIDES)
    def _guide(self, request):
        self.guide = GUIDES[request.param]
        if request.param == "backward_ising":
            self.marginal_error = 4 * 0.25 / MARGINAL_DRAWS**0.5  # conditional probabilities scatter by .25 at most

    def make_guide(self, model):
        return self.guide(model)


class TestAuto(GuideConformance):
    @pytest.fixture(autouse=True, params=[Prior, RegularisedHorseshoe])
    def _prior(self, request):
        self.prior = request.param

    def make_prior(self, sites):
        return self.prior(sites)

    def make_guide(self, model):
        return Auto(model)


class TestPointEstimate(GuideConformance):
    def make_prior(self, sites):
        return Flat(sites)

    def make_guide(self, model):
        return PointEstimate(model)


class TestDropConnect(TestPointEstimate):
    def make_guide(self, model):
        return PointEstimate(model, dropconnect=0.1)


class TestSparseVariationalDropout(GuideConformance):
    def make_prior(self, sites):
        return LogUniform(sites)

    def make_guide(self, model):
        return SparseVariationalDropout(model)


def fit_briefly(model, guide, stripes):
    fit(guide, stripes, config=FitConfig(steps=3, temperature=0.1, device="cpu"), progress=False)


class Forgetful(MeanField):
    def forward(self, *args, **kwargs):
        with pyro.poutine.block(hide=["classifier.out.weight"]):
            return super().forward(*args, **kwargs)


class Talkative(MeanField):
    def draw_masks(self):
        pyro.sample("mood", dist.Normal(0.0, 1.0))
        return super().draw_masks()


class Squashed(MeanField):
    def weight(self, site, mask):
        return dist.Normal(self.loc[site.key].flatten(), 1.0).to_event(1)


class Fuzzy(MeanField):
    def mask(self, site):
        logit = self.logit[site.key]
        return dist.Uniform(torch.zeros_like(logit) + 0.3, 1.0).to_event(logit.dim())


class Losing(MeanField):
    def draw_masks(self):
        return {name: mask for name, mask in super().draw_masks().items() if name != "encoder.up"}


class Loose(MeanField):
    def mask(self, site):
        return dist.Bernoulli(logits=self.logit[site.key])


class Forgetting(MeanField):
    def __init__(self, model, strength=3.0):
        super().__init__(model)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Forgetful, r"guide=Forgetful misses the site 'classifier\.out\.weight': sample it"),
        (Talkative, r"guide=Talkative samples \['mood'\], which prior=IsingSpikeSlab does not have"),
        (Squashed, r"draws 'patch_embed\.weight' of shape \(16,\); expected \(4, 4\)"),
        (Fuzzy, r"draws 'patch_embed\.mask' with 0\.\d+: a mask is exactly 0 or 1"),
        (Losing, r"guide=Losing: draw_masks returns no masks of \['encoder\.up'\]"),
        (Loose, r"draws 'patch_embed\.mask' from a distribution with batch shape \(4, 4\): use to_event\(2\)"),
        (Forgetting, r"Forgetting: its constructor's argument 'strength' is not kept; set self\.strength"),
    ],
)
def test_a_guide_that_does_not_match_is_named_before_the_first_step(tiny_model, stripes, family, message):
    with pytest.raises(InputError, match=message):
        fit_briefly(tiny_model, family(tiny_model), stripes)


class Together(Interaction):
    def energy(self, masks):
        return masks["classifier.out"].sum() * masks["classifier.hidden"].sum()


def test_latent_inclusion_beneath_an_interaction_is_named(tiny_network, stripes):
    prior = HierarchicalSpikeSlab(tiny_network.weight_sites())
    prior.interaction = Together()
    model = IsingViT(tiny_network, prior)
    with pytest.raises(InputError, match=r"samples \['patch_embed.inclusion'.*override log_normaliser"):
        fit_briefly(model, LikelihoodGuided(model), stripes)


class Sideways(IsingSpikeSlab):
    def mask(self, site):
        return super().mask(site).to_event(-1)


def test_masks_of_a_wrong_shape_are_named(tiny_network):
    model = IsingViT(tiny_network, Sideways(tiny_network.weight_sites()))
    with pytest.raises(InputError, match=r"prior\.mask at site 'patch_embed' has batch shape \(4,\).*use to_event"):
        MeanField(model)


@pytest.mark.parametrize(
    ("family", "prior", "message"),
    [
        (LikelihoodGuided, RegularisedHorseshoe, "has no spike-and-slab weight at .*use MeanField"),
        (Auto, IsingSpikeSlab, "prior=IsingSpikeSlab has masks, which Pyro's AutoGuides cannot draw"),
        (PointEstimate, IsingSpikeSlab, "has masks; PointEstimate has none"),
        (BackwardIsing, IndependentSpikeSlab, "has no couplings to mirror; pass couplings="),
        (ScoreFunction, StructuredSpikeSlab, "one mask for several weights at"),
        (LowRank, Prior, "has no masks to correlate"),
        (partial(LowRank, rank=0), IsingSpikeSlab, "rank=0"),
        (
            lambda model: BackwardIsing(model, couplings=CouplingGraph(model.sites[5:7], [VIT_COUPLINGS[0]])),
            IsingSpikeSlab,
            r"no site \['classifier.hidden'.*make the graph over all sites",
        ),
        (partial(ScoreFunction, baseline="best"), IsingSpikeSlab, "baseline='best'"),
    ],
)
def test_a_guide_that_cannot_serve_a_prior_says_so(tiny_network, family, prior, message):
    model = IsingViT(tiny_network, prior(tiny_network.weight_sites()))
    with pytest.raises(InputError, match=message):
        family(model)


class Wide(Interaction):
    def energy(self, masks):
        return masks["encoder.up"].sum(-1)


def test_an_energy_that_is_no_scalar_is_named(tiny_network, stripes):
    prior = IndependentSpikeSlab(tiny_network.weight_sites())
    prior.interaction = Wide()
    model = IsingViT(tiny_network, prior)
    with pytest.raises(InputError, match=r"interaction=Wide: its energy has shape \(2, 8\); return a scalar"):
        fit_briefly(model, MeanField(model), stripes)
