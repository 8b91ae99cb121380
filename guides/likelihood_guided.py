r"""Mean field with masks updated from the estimated gain in log-likelihood from keeping each weight.

For a Bernoulli mask, the exact natural gradient of the ELBO in its logit vanishes at

.. math:: \mathrm{logit} =
   (L_+ - L_-)/T - \mathrm{KL}(q(w|1) \| p(w|1)) + \log\frac{\pi}{1-\pi} + \text{Ising local field}

and this guide moves the logit a share of the way there every few batches. The curvature F of the log-likelihood also
gives the scale s of each weight in closed form, :math:`1/s^2 = F/T + 1/S^2`, where S is the scale of the prior's slab.

Masks may have a temperature of their own, :math:`T_m`. The target is then the generalised posterior

.. math:: \pi(m, w) = \pi_{T_m}(m)\, \pi_T(w \mid m), \qquad
   \pi_{T_m}(m) \propto p(m) \int p(w \mid m)\, L(w)^{1/T_m}\, dw, \quad
   \pi_T(w \mid m) \propto p(w \mid m)\, L(w)^{1/T}

in which masks follow from the evidence at :math:`T_m`, and weights, given masks, from the power posterior at T. It is
the power posterior where both are equal. The evidence is computed to second order: the posterior of a weight at
:math:`T_m` has the variance :math:`v_m = 1/(F/T_m + 1/S^2)`, and the mean
:math:`\mu_m = \mu\,(F + T/S^2)/(F + T_m/S^2)`, where :math:`\mu` is the mean at T. The log odds are then those of the
Gaussian integrals, :math:`\mu_m^2 / (2 v_m) + \tfrac12 \log(v_m / S^2)` for each weight, where the means are
stationary. With temperatures that differ between sites, masks follow the conditionals of several such targets, and the
fit is a fixed point of these rather than an approximation of one joint distribution.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
    Bissiri, Holmes & Walker, "A General Framework for Updating Belief Distributions", JRSS B 2016 (generalised
    posteriors).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.distributions import StraightThroughBernoulli
from pyro_isingvit.errors import InputError, kind_of
from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import Linear, WeightSite

from .density import shift_for_density
from .estimators import ESTIMATORS, Estimator
from .evidence import log_evidence_ratio, moments
from .mean_field import MeanField

LOGIT_BOUND = 8.0
"""Logits are clamped to within plus and minus this, so that a dropped weight can be kept again."""

ROUNDS = 20
"""Rounds of the fixed point of masks that depend on each other, for inclusion probabilities at another temperature."""


class LikelihoodGuided(MeanField):
    """`MeanField` with coordinate updates of the masks and scales in place of their gradients.

    The updates use the gradients of the backward pass and come after the step of the optimiser: first the means change,
    then masks and scales, given the new means. `fit` calls `learn` at that point; under `pyro.infer.SVI` the guide
    calls it itself. The loss has to be the negative ELBO itself, in nats, with one particle. While the model's masks
    are fixed, only the estimator is updated.

    Args:
        model: the model whose posterior this approximates; weights of its prior that have masks are spike-and-slab.
        initial_logit, initial_scale, unit_scales: see `MeanField`. In closed form, the precision that weights share is
            the mean of their own, in proportion to their inclusion probabilities.
        rate: share of the way to its target that the logit of a mask moves per batch, within (0, 1).
        refresh_every: number of batches between updates; one update moves as far as that many updates of one batch.
        estimator: the estimator of the gain in log-likelihood from keeping each weight: a name of
            `pyro_isingvit.guides.estimators.ESTIMATORS`, or a function that makes an `Estimator` from the model.
        target_density: mean inclusion probability of all weights, within (0, 1), which is held by shifting all logits
            by a common external field at each update; None leaves it to prior and likelihood.
        fixed_scale: scale of every weight throughout training, as published; None for the closed form.
        mask_temperature: the temperature of masks, for all or by site name; that of the posterior, for those that are
            not named or if None. See above for the target. It needs the closed form of the scales.

    Raises:
        InputError: if a value is out of range, a site is unknown, a weight with a mask is not spike-and-slab, or both
            ``fixed_scale`` and ``mask_temperature`` are given.
    """

    closed_form = True
    counters = ("_since_refresh",)

    def __init__(
        self,
        model: IsingViT,
        initial_logit: float = 4.0,
        initial_scale: float = 5e-3,
        rate: float = 0.05,
        refresh_every: int = 10,
        estimator: str | Callable[[IsingViT], Estimator] = "squared_gradient",
        target_density: float | None = None,
        fixed_scale: float | None = None,
        mask_temperature: float | Mapping[str, float] | None = None,
        unit_scales: bool = False,
    ) -> None:
        first = initial_scale if fixed_scale is None else fixed_scale
        super().__init__(model, initial_logit, first, unit_scales=unit_scales)
        self.initial_scale, self.fixed_scale = initial_scale, fixed_scale
        bare = [name for name in self.mask_shapes if name not in self._spiked]
        if bare or not self.mask_shapes:
            raise InputError(
                f"prior={type(model.prior).__name__} has no spike-and-slab weight at {bare or 'any site'}; "
                "use MeanField or one of Pyro's AutoGuides"
            )
        if fixed_scale is not None and mask_temperature is not None:
            raise InputError(
                f"fixed_scale={fixed_scale} and mask_temperature={mask_temperature}: the evidence at a temperature "
                "needs scales in closed form; leave one of them out"
            )
        self.mask_temperature = mask_temperature
        self._mask_temperatures = _by_site(self.mask_shapes, mask_temperature)
        if not 0 < rate < 1:
            raise InputError(f"rate={rate}: must lie strictly between 0 and 1")
        if refresh_every < 1:
            raise InputError(f"refresh_every={refresh_every}: must be at least 1")
        self.rate, self.refresh_every = rate, refresh_every
        self.hold_density(target_density)
        if isinstance(estimator, str):
            if estimator not in ESTIMATORS:
                raise InputError(f"estimator={estimator!r}: choose one of {list(ESTIMATORS)}")
            estimator = ESTIMATORS[estimator]
        self.estimator = estimator(model)
        self.logit.requires_grad_(False)
        self.log_scale.requires_grad_(False)
        self._since_refresh = 0

    def hold_density(self, density: float | None) -> None:
        if density is not None and not 0 < density < 1:
            raise InputError(f"target_density={density}: a share of the weights lies between 0 and 1, e.g. 0.3")
        self.target_density = density

    @torch.no_grad()
    def hold_masks(self, probabilities: Mapping[str, Tensor]) -> None:
        for name, values in probabilities.items():
            shape = self.mask_shapes.get(name)
            if shape is None:
                raise InputError(f"probabilities: no masks at {name!r}; there are {list(self.mask_shapes)}")
            if not isinstance(values, Tensor):
                raise InputError(f"probabilities of {name}={kind_of(values)}: give a tensor of shape {tuple(shape)}")
            if values.shape != shape or not bool(((values >= 0) & (values <= 1)).all()):
                raise InputError(
                    f"probabilities of {name} of shape {tuple(values.shape)}: need values within [0, 1] of shape "
                    f"{tuple(shape)}, as from inclusion_probabilities() of a prior with the same masks"
                )
        self.held = frozenset(probabilities)
        for site in self.model.sites:
            if site.name in self.held:
                logit = probabilities[site.name].to(self.logit[site.key].device).logit()
                self.logit[site.key].copy_(logit.clamp(-LOGIT_BOUND, LOGIT_BOUND))

    def mask_temperature_of(self, site: WeightSite) -> float:
        own = self._mask_temperatures.get(site.name)
        return self.model.temperature if own is None else own

    @property
    def watches(self) -> bool:
        return self.training

    def see(self, passing: Pass) -> Linear | None:
        super().see(passing)
        return self.estimator.watch(passing.weights)

    @torch.no_grad()
    def learn(self) -> None:
        """Update the estimator from the last pass that was seen and, every few batches, the masks and scales."""
        seen = self.seen
        if seen is None or any(weight.grad is None for weight in seen.weights.values()):
            return
        self.seen = None
        self.estimator.update(self, seen)
        if self.model.fixed_masks is None:
            self._since_refresh += 1
            if self._since_refresh >= self.refresh_every:
                self.estimator.prepare(self, seen)
                if self.averaging is not None:
                    self.averaging(self.estimator.averages())
                self.refresh(1 - (1 - self.rate) ** self._since_refresh)
                self._since_refresh = 0

    @torch.no_grad()
    def refresh(self, share: float = 1.0) -> None:
        """Move the logit of every mask and the log scale of every weight a share of the way to its optimum."""
        temperature, sites = self.model.temperature, self.model.sites
        if self.model.prior.interaction is not None:
            self.model.prior.interaction.observe_weights({site.name: self.loc[site.key] for site in sites})
        prior_fields = self.prior_fields()
        targets, log_scales = {}, {}
        for site in sites:
            prior, curvature = self._prior_slab(site), self.estimator.curvature(site)
            if site.name in self.mask_shapes and site.name not in self.held:
                evidence = self._evidence(site, prior, curvature, self._mask_temperatures[site.name])
                targets[site.key] = evidence + prior_fields[site.name]
            if self.fixed_scale is None:
                log_scales[site.key] = -0.5 * self._shared(site, curvature / temperature + moments(prior)[1]).log()
        for key, log_scale in log_scales.items():
            self.log_scale[key].lerp_(log_scale, share)
        if self.target_density is not None:
            weights = {site.key: site.numel for site in sites}
            others = {key: self._mean_inclusion(key) for key in weights if key not in targets}
            shift = shift_for_density(targets, weights, others, self.target_density)
            targets = {key: target + shift for key, target in targets.items()}
        for key, target in targets.items():
            self.logit[key].lerp_(target.clamp(-LOGIT_BOUND, LOGIT_BOUND), share)

    @torch.no_grad()
    def evidence(self, site: WeightSite, temperature: float | None = None) -> Tensor:
        """Log odds that the likelihood gives each mask of a site: log evidence with it kept, less that with it dropped.

        To second order about the means, see above. The derivative of the log-likelihood at the mean of a weight, in
        nats, is the one at which the posterior at this temperature is stationary: temperature times
        ``(mean - prior mean) / S ** 2``. So the means have to be nearly stationary: they may be off by a small part of
        ``S ** 2 / mean``. Estimators that measure the gain in another way than to second order (``paired_draws`` at the
        last layer, ``straight_through``, ``disarm``, ``none``) measure it at the means at T.

        A scale that weights share is the optimum for their present inclusion probabilities.

        Args:
            site: a site with masks.
            temperature: exponent of the likelihood is one over this; None for the temperature of the posterior.

        Returns:
            Sums over the weights that share a mask, in the shape of the masks.
        """
        return self._evidence(site, self._prior_slab(site), self.estimator.curvature(site), temperature)

    def _evidence(
        self, site: WeightSite, prior: torch.distributions.Distribution, curvature: Tensor, temperature: float | None
    ) -> Tensor:
        pull, shared = partial(self.estimator.pull, site), partial(self._shared, site)
        own = self.model.temperature
        ratio = log_evidence_ratio(pull, self.slab(site), prior, curvature, own, temperature, shared)
        return ratio.sum_to_size(self.mask_shapes[site.name])

    @torch.no_grad()
    def inclusion_log_odds(self) -> dict[str, Tensor]:
        """The log odds that the masks move towards, not clamped to `LOGIT_BOUND`, before a density is held."""
        known, fields = super().inclusion_log_odds(), self.prior_fields()
        free = [site for site in self.model.sites if site.name in self.mask_shapes and site.name not in self.held]
        targets = {
            site.name: self._evidence(
                site, self._prior_slab(site), self.estimator.curvature(site), self._mask_temperatures[site.name]
            )
            for site in free
        }
        return known | {name: (target + fields[name]).double() for name, target in targets.items()}

    @torch.no_grad()
    def inclusion_at(self, temperature: float) -> dict[str, Tensor]:
        if self.fixed_scale is not None:
            raise InputError(
                f"temperature={temperature}: the evidence at a temperature needs scales in closed form, and these are "
                f"fixed_scale={self.fixed_scale}"
            )
        masks = self.inclusion_probabilities()
        free = [site for site in self.model.sites if site.name in self.mask_shapes and site.name not in self.held]
        evidence = {site.name: self.evidence(site, temperature) for site in free}
        for _ in range(ROUNDS):
            fields = self.prior_fields(masks)
            targets = {name: (gain + fields[name]).sigmoid() for name, gain in evidence.items()}
            masks |= {name: masks[name].lerp(target, 0.5) for name, target in targets.items()}
        return masks

    @torch.no_grad()
    def sample_parts(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A draw of all masks, and a draw of all weights from their slabs; by site name."""
        masks = {site.name: self.mask(site).sample() for site in self.model.sites if site.name in self.mask_shapes}
        return masks, {site.name: self.slab(site).sample() for site in self.model.sites}

    def prior_fields(self, inclusion: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Prior log odds of each mask given the means of all others, by site name.

        They are gradients, since the log of the base measure and the energy are linear in each mask.

        Args:
            inclusion: means of the masks, by site name; their inclusion probabilities under this guide if None.
        """
        prior, sites = self.model.prior, [site for site in self.model.sites if site.name in self.mask_shapes]
        means = self.inclusion_probabilities() if inclusion is None else inclusion
        with torch.enable_grad(), self.hypers_at_median():
            masks = {name: mean.detach().requires_grad_() for name, mean in means.items()}
            fields = {site.name: _log_odds(prior.mask(site)) for site in sites}
            energy = None if prior.interaction is None else prior.interaction.energy(masks)
            if energy is None or not energy.requires_grad:
                return fields
            pulls = torch.autograd.grad(energy, list(masks.values()), materialize_grads=True)
        return {name: field + pull for (name, field), pull in zip(fields.items(), pulls, strict=True)}

    def _shared(self, site: WeightSite, precisions: Tensor) -> Tensor:
        """Optimum of the precisions, in the shape of the scales, from those of single weights."""
        if not self.unit_scales:
            return precisions
        logit = self.logit[site.key] if site.key in self.logit else precisions.new_zeros(())
        kept = logit.clamp_min(-LOGIT_BOUND).sigmoid().expand(site.shape)
        return (kept * precisions).sum_to_size(site.unit_shape) / kept.sum_to_size(site.unit_shape)

    def _mean_inclusion(self, key: str) -> float:
        return float(self.logit[key].sigmoid().mean()) if key in self.logit else 1.0

    def _prior_slab(self, site: WeightSite) -> torch.distributions.Distribution:
        if site.key not in self.logit:
            return self._prior_weight(site, None)
        return self._prior_weight(site, torch.ones_like(self.logit[site.key])).slab


def _log_odds(base: TorchDistributionMixin | None) -> Tensor:
    """Log odds of independent masks under a base measure, which broadcast to their shape."""
    if isinstance(base, StraightThroughBernoulli):
        return base.given.detach()
    assert base is not None
    zeros = base.sample().zero_().requires_grad_()
    log_prob = base.log_prob(zeros).sum()
    return torch.autograd.grad(log_prob, zeros)[0] if log_prob.requires_grad else torch.zeros_like(zeros)


def _by_site(
    shapes: Mapping[str, torch.Size], temperature: float | Mapping[str, float] | None
) -> dict[str, float | None]:
    """The temperature of the masks of each site; None where it is that of the posterior."""
    given = temperature if isinstance(temperature, Mapping) else dict.fromkeys(shapes, temperature)
    unknown = set(given) - set(shapes)
    if unknown:
        raise InputError(f"mask_temperature={temperature}: no masks at {sorted(unknown)}; there are {list(shapes)}")
    for value in given.values():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"mask_temperature={temperature}: must be positive and finite, e.g. 1.0")
    return {name: given.get(name) for name in shapes}
