"""The evidence of masks at a temperature of their own, against integrals; held masks; sites without masks."""

import copy
import math

import pytest
import torch
from scipy import integrate
from torch.distributions import Normal, kl_divergence

from pyro_isingvit import (
    FeatureSpikeSlab,
    FitConfig,
    InputError,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    Posterior,
    StructuredSpikeSlab,
    ViT,
    fit,
)
from pyro_isingvit.guides.estimators import Estimator
from tests.conftest import QUICK, TINY, pair


class Known(Estimator):
    """A log-likelihood that is quadratic in each weight, with a known curvature."""

    value = 1.0

    def curvature(self, site):
        return torch.full(site.shape, self.value, dtype=torch.float64)


def log_bayes_factor(curvature, peak, scale, temperature):
    """log of the integral of slab times likelihood ** (1 / T), over the likelihood at zero; by quadrature.

    The log-likelihood is ``curvature * (peak * w - w ** 2 / 2)``.
    """

    highest = curvature * peak**2 / 2 / temperature

    def integrand(w):
        likelihood = curvature * (peak * w - w**2 / 2) / temperature - highest
        return math.exp(-0.5 * (w / scale) ** 2 + likelihood) / (scale * math.sqrt(2 * math.pi))

    width = math.sqrt(temperature / curvature)
    places = sorted({0.0, peak - 3 * width, peak, peak + 3 * width})
    bound = 12 * scale
    total, _ = integrate.quad(
        integrand, -bound, bound, points=[p for p in places if abs(p) < bound], limit=400, epsrel=1e-9
    )
    return math.log(total) + highest


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("curvature", [0.3, 20.0, 400.0])
@pytest.mark.parametrize("at", [None, 0.05, 0.1, 1.0, 5.0])
def test_evidence_equals_the_integral_over_a_weight(temperature, curvature, at):
    model = pair()[0]
    guide = LikelihoodGuided(model, estimator=Known).double()
    guide.estimator.value = curvature
    model.temperature = temperature
    site = model.sites[0]
    scale = site.fan_in**-0.5
    peaks = torch.linspace(-2 * scale, 2 * scale, site.numel, dtype=torch.float64).view(site.shape)
    precision = curvature / temperature + scale**-2
    with torch.no_grad():  # the exact posterior at the temperature of the model
        guide.loc[site.key].copy_(curvature * peaks / temperature / precision)
        guide.log_scale[site.key].fill_(-0.5 * math.log(precision))
    found = guide.evidence(site, at)
    for place in [0, site.numel // 2, site.numel - 1]:
        exact = log_bayes_factor(curvature, float(peaks.flatten()[place]), scale, temperature if at is None else at)
        assert float(found.flatten()[place]) == pytest.approx(exact, abs=1e-4, rel=1e-4)


def test_the_scale_of_a_unit_is_the_optimum_for_all_weights_that_it_reads(tiny_model):
    """Of a likelihood that is quadratic in each weight: no other scale has a higher ELBO."""

    class Varied(Estimator):
        def curvature(self, site):
            return torch.arange(1.0, 1 + site.numel, dtype=torch.float64).view(site.shape)

    guide = LikelihoodGuided(tiny_model, estimator=Varied, unit_scales=True).double()
    tiny_model.temperature = 0.3
    for site in tiny_model.sites:
        torch.nn.init.normal_(guide.logit[site.key])
    masks = guide.inclusion_probabilities()
    guide.hold_masks(masks)
    guide.refresh()
    for site in tiny_model.sites:
        optimum = guide.log_scale[site.key].detach()
        assert optimum.shape == site.unit_shape != site.shape

        def elbo(log_scale, site=site):
            scale, slab = log_scale.exp(), site.fan_in**-0.5
            loss = scale**2 * Varied(tiny_model).curvature(site) / (2 * 0.3)
            each = loss + kl_divergence(Normal(torch.zeros(()), scale), Normal(torch.zeros(()), torch.tensor(slab)))
            return -(masks[site.name] * each).sum_to_size(site.unit_shape)

        assert bool((elbo(optimum) > elbo(optimum + 0.02)).all())
        assert bool((elbo(optimum) > elbo(optimum - 0.02)).all())


def test_masks_that_weights_share_add_up_their_evidence():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViT(TINY)
    sites = network.weight_sites()
    one = LikelihoodGuided(IsingViT(network, StructuredSpikeSlab(sites)), estimator=Known)
    each = LikelihoodGuided(IsingViT(network, IsingSpikeSlab(sites)), estimator=Known)
    up = next(site for site in one.model.sites if site.name == "encoder.up")
    assert torch.allclose(one.evidence(up, 2.0), each.evidence(up, 2.0).sum(up.axis("dim"), keepdim=True), atol=1e-5)


@pytest.mark.parametrize("unit_scales", [False, True])
def test_what_is_read_off_at_the_temperature_of_a_fit_is_the_fixed_point_of_its_updates(stripes, unit_scales):
    """Couplings included; logits are clamped, which moves probabilities by less than 1e-3."""
    guide = pair(unit_scales=unit_scales)[1]
    fit(guide, stripes, None, FitConfig(**QUICK | {"steps": 400, "temperature": 0.02}), progress=False)
    for _ in range(40):
        guide.refresh(0.5)
    posterior = Posterior.of(guide)
    mine, read_off = posterior.inclusion_probabilities(), posterior.inclusion_probabilities(0.02)
    for name, probs in mine.items():
        assert torch.allclose(probs, read_off[name], atol=1e-3)
    hotter = posterior.inclusion_probabilities(1.0)
    assert sum(p.sum() for p in hotter.values()) < sum(p.sum() for p in mine.values())


def test_only_a_guide_with_evidence_can_be_read_off():
    from pyro_isingvit import MeanField

    posterior = Posterior.of(pair(MeanField)[1])
    with pytest.raises(InputError, match=r"temperature=1\.0: MeanField has no estimate"):
        posterior.inclusion_probabilities(1.0)
    with pytest.raises(InputError, match="temperature=0: must be a positive number"):
        posterior.inclusion_probabilities(0)


def selective():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViT(TINY)
    return LikelihoodGuided(IsingViT(network, FeatureSpikeSlab(network.weight_sites())))


def test_weights_without_masks_are_all_kept(stripes, tmp_path):
    guide = selective()
    assert guide.mask_shapes == {"patch_embed": torch.Size([1, 4])}
    posterior = fit(guide, stripes, None, FitConfig(**QUICK), progress=False).posterior
    assert set(posterior.inclusion_probabilities()) == {"patch_embed"}
    draw = next(posterior.draws(1))
    assert all((weight != 0).all() for name, weight in draw.weights.items() if name != "patch_embed")
    posterior.save(tmp_path / "saved")
    again = Posterior.load(tmp_path / "saved")
    assert torch.equal(again.predict(stripes.images, 5).probs, posterior.predict(stripes.images, 5).probs)


def test_estimators_with_draws_of_their_own_run_without_some_masks(stripes):
    for estimator in ("disarm", "paired_draws", "straight_through", "hessian_diagonal"):
        model = selective().model
        guide = LikelihoodGuided(model, estimator=estimator)
        posterior = fit(guide, stripes, None, FitConfig(**QUICK | {"steps": 30}), False).posterior
        assert posterior.inclusion_probabilities()["patch_embed"].isfinite().all()
        assert not torch.equal(guide.logit["patch_embed"], torch.full((1, 4), 4.0))


def test_the_exact_hessian_adds_up_the_same_evidence():
    model = pair()[0]
    guide = LikelihoodGuided(model, estimator="hessian_diagonal")
    other = LikelihoodGuided(model, estimator=Known)
    site = model.sites[0]
    guide.estimator.diagonal.take_in([torch.full(s.shape, 20.0) for s in model.sites])
    other.estimator.value = 20.0
    assert torch.allclose(guide.evidence(site, 0.7), other.evidence(site, 0.7).float(), atol=1e-5)


def test_held_masks_stay_through_all_phases(stripes, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViT(TINY)
    guide = LikelihoodGuided(IsingViT(network, StructuredSpikeSlab(network.weight_sites())))
    held = {"patch_embed": torch.tensor([[0.9, 0.2, 0.7, 0.0]])}
    guide.hold_masks(held)
    pilots = []
    guide.model.fix_masks = lambda masks, fix=guide.model.fix_masks: (pilots.append(masks), fix(masks))[1]
    posterior = fit(guide, stripes, None, FitConfig(**QUICK), progress=False).posterior
    assert pilots[0]["patch_embed"].tolist() == [[1, 0, 1, 0]]
    assert all((mask == 1).all() for name, mask in pilots[0].items() if name != "patch_embed")
    inside = posterior.inclusion_probabilities()
    assert torch.allclose(inside["patch_embed"][0, :3], held["patch_embed"][0, :3], atol=1e-6)
    assert inside["patch_embed"][0, 3] < 1e-3  # within the bound of logits
    assert torch.equal(posterior.inclusion_probabilities(1.0)["patch_embed"], inside["patch_embed"])
    assert not torch.allclose(inside["encoder.up"], torch.full((), 4.0).sigmoid())
    del guide.model.fix_masks
    Posterior.of(guide).save(tmp_path / "saved")
    assert Posterior.load(tmp_path / "saved").guide.held == {"patch_embed"}
    guide.hold_masks({})
    assert not guide.held


def test_a_density_that_is_held_is_that_of_all_weights(stripes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViT(TINY)
    guide = LikelihoodGuided(IsingViT(network, StructuredSpikeSlab(network.weight_sites())))
    guide.hold_masks({"patch_embed": torch.tensor([[1.0, 0.0, 1.0, 1.0]])})
    config = FitConfig(**QUICK | {"steps": 300, "target_density": 0.4})
    posterior = fit(guide, stripes, None, config, progress=False).posterior
    assert posterior.densities()["expected_density"] == pytest.approx(0.4, abs=0.02)
    with pytest.raises(InputError, match=r"target_density=0\.1: masks that are held, and weights without masks, keep"):
        fit(selective(), stripes, None, FitConfig(**QUICK | {"target_density": 0.1}), progress=False)


@pytest.mark.parametrize("density", [None, 0.4])
def test_an_update_moves_logits_by_the_share_that_is_asked_for(density):
    guide = pair(target_density=density)[1]
    start = copy.deepcopy(guide.state_dict())
    moves = {}
    for share in (0.01, 1.0):
        guide.load_state_dict(start)
        guide.refresh(share)
        moves[share] = guide.logit["encoder_up"] - start["logit.encoder_up"]
    assert moves[1.0].abs().max() > 1
    assert torch.allclose(moves[0.01], 0.01 * moves[1.0], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair(mask_temperature=0.0), r"mask_temperature=0\.0: must be positive"),
        (lambda: pair(mask_temperature={"patch": 1.0}), r"mask_temperature=.*no masks at \['patch'\]"),
        (lambda: pair()[1].hold_masks({"patch": torch.ones(1)}), "no masks at 'patch'"),
        (lambda: pair()[1].hold_masks({"patch_embed": torch.ones(1)}), "probabilities of patch_embed of shape"),
        (lambda: pair()[1].hold_masks({"patch_embed": 2 * torch.ones(4, 4)}), "need values within"),
        (lambda: pair()[1].hold_masks({"patch_embed": [1.0]}), "probabilities of patch_embed=.* give a tensor"),
        (lambda: pair(fixed_scale=1e-3, mask_temperature=1.0), r"fixed_scale=0\.001 and mask_temperature=1\.0"),
        (lambda: pair(fixed_scale=1e-3)[1].inclusion_at(1.0), r"temperature=1\.0: .*fixed_scale=0\.001"),
        (lambda: pair(mask_temperature=float("inf")), "mask_temperature=inf"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(InputError, match=message):
        call()
