r"""Mean field with masks updated from the estimated gain in log-likelihood from keeping each weight.

For a Bernoulli mask, the exact natural gradient of the ELBO in its logit vanishes at

.. math:: \mathrm{logit} =
   (L_+ - L_-)/T - \mathrm{KL}(q(w|1) \| p(w|1)) + \log\frac{\pi}{1-\pi} + \text{Ising local field}

and this guide moves the logit a share of the way there every few batches. The curvature F of the log-likelihood also
gives the scale s of each weight in closed form, :math:`1/s^2 = F/T + 1/S^2`, where S is the scale of the prior's slab.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
"""

from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.models.priors import Prior
from pyro_isingvit.network import Linear, WeightSite

from .estimators import ESTIMATORS, Estimator
from .mean_field import MeanField

LOGIT_BOUND = 8.0
"""Logits are clamped to within plus and minus this, so that a dropped weight can be kept again."""


class LikelihoodGuided(MeanField):
    """`MeanField` with coordinate updates of the masks and scales in place of their gradients.

    The updates use the gradients of the backward pass and come after the step of the optimiser: first the means change,
    then masks and scales, given the new means. `fit` calls `learn` at that point; under `pyro.infer.SVI` the guide
    calls it itself. The loss has to be the negative ELBO itself, in nats, with one particle. While the model's masks
    are fixed, only the estimator is updated.

    Args:
        model: the model whose posterior this approximates; all weights of its prior are spike-and-slab.
        initial_logit, initial_scale: see `MeanField`.
        rate: share of the way to its target that the logit of a mask moves per batch, within (0, 1).
        refresh_every: number of batches between updates; one update moves as far as that many updates of one batch.
        estimator: the estimator of the gain in log-likelihood from keeping each weight: a name of
            `pyro_isingvit.guides.estimators.ESTIMATORS`, or a function that makes an `Estimator` from the model.
        target_density: mean inclusion probability of all weights, within (0, 1), which is held by shifting all logits
            by a common external field at each update; None leaves it to prior and likelihood.
        fixed_scale: scale of every weight throughout training, as published; None for the closed form.

    Raises:
        InputError: if a value is out of range, or a weight of the prior is not spike-and-slab.
    """

    closed_form = True

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
    ) -> None:
        super().__init__(model, initial_logit, initial_scale if fixed_scale is None else fixed_scale)
        self.initial_scale, self.fixed_scale = initial_scale, fixed_scale
        bare = [site.name for site in model.sites if site.name not in self._spiked]
        if bare or len(self.mask_shapes) < len(model.sites):
            raise InputError(
                f"prior={type(model.prior).__name__} has no spike-and-slab weight at {bare or 'some sites'}; "
                "use MeanField or one of Pyro's AutoGuides"
            )
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
        self.forget()
        self.estimator.update(self, seen)
        if self.model.fixed_masks is None:
            self._since_refresh += 1
            if self._since_refresh >= self.refresh_every:
                self.estimator.prepare(self, seen)
                self.refresh(1 - (1 - self.rate) ** self._since_refresh)
                self._since_refresh = 0

    @torch.no_grad()
    def refresh(self, share: float = 1.0) -> None:
        """Move the logit of every mask and the log scale of every weight a share of the way to its optimum."""
        temperature, sites = self.model.temperature, self.model.sites
        if self.model.prior.interaction is not None:
            self.model.prior.interaction.observe_weights({site.name: self.loc[site.key] for site in sites})
        prior_fields, slabs = self.prior_fields(), self._prior_slabs()
        targets = {}
        for site in sites:
            pull = self.estimator.pull(site, self.slab(site)) / temperature
            target = pull - _divergence(self.slab(site), slabs[site.name])
            targets[site.key] = target.sum_to_size(self.mask_shapes[site.name]) + prior_fields[site.name]
            if self.fixed_scale is not None:
                continue
            precision = self.estimator.curvature(site) / temperature + 1 / slabs[site.name].variance
            self.log_scale[site.key].lerp_(-0.5 * precision.log(), share)
        if self.target_density is not None:
            logits = torch.cat([target.flatten() for target in targets.values()])
            sizes = [
                t.new_full((t.numel(),), s.numel / t.numel()) for s, t in zip(sites, targets.values(), strict=True)
            ]
            shift = _field_for_density(logits, torch.cat(sizes), self.target_density)
            targets = {key: target + shift for key, target in targets.items()}
        for key, target in targets.items():
            self.logit[key].lerp_(target.clamp(-LOGIT_BOUND, LOGIT_BOUND), share)

    @torch.no_grad()
    def sample_parts(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A draw of all masks, and a draw of all weights from their slabs; by site name."""
        masks = {site.name: self.mask(site).sample() for site in self.model.sites}
        return masks, {site.name: self.slab(site).sample() for site in self.model.sites}

    def prior_fields(self) -> dict[str, Tensor]:
        """Prior log odds of each mask given the posterior means of all others, by site name.

        They are gradients, since the log of the base measure and the energy are linear in each mask.
        """
        prior, sites = self.model.prior, self.model.sites
        with torch.enable_grad(), self.hypers_at_median():
            masks = {name: mean.requires_grad_() for name, mean in self.inclusion_probabilities().items()}
            zeros = {name: torch.zeros_like(mask, requires_grad=True) for name, mask in masks.items()}
            base = torch.stack([_base(prior, site).log_prob(zeros[site.name]) for site in sites]).sum()
            fields = {name: torch.zeros_like(zero) for name, zero in zeros.items()}
            if base.requires_grad:
                slopes = torch.autograd.grad(base, list(zeros.values()), materialize_grads=True)
                fields = dict(zip(zeros, slopes, strict=True))
            energy = None if prior.interaction is None else prior.interaction.energy(masks)
            if energy is None or not energy.requires_grad:
                return fields
            pulls = torch.autograd.grad(energy, list(masks.values()), materialize_grads=True)
        return {name: field + pull for (name, field), pull in zip(fields.items(), pulls, strict=True)}

    def _prior_slabs(self) -> dict[str, torch.distributions.Distribution]:
        return {
            site.name: self._prior_weight(site, torch.ones_like(self.logit[site.key])).slab for site in self.model.sites
        }


def _base(prior: Prior, site: WeightSite) -> TorchDistributionMixin:
    base = prior.mask(site)
    assert base is not None
    return base


def _divergence(q: torch.distributions.Distribution, p: torch.distributions.Distribution) -> Tensor:
    """KL(q || p) of each element; where there is no closed form, from one draw, since updates average over many."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        draw = q.sample()
        return q.log_prob(draw) - p.log_prob(draw)


def _field_for_density(logits: Tensor, sizes: Tensor, density: float) -> Tensor:
    """The shift of all logits, by bisection, at which the probabilities weighted by ``sizes`` have mean ``density``."""
    shares = sizes / sizes.sum()
    low, high = (-logits).min() - 20, (-logits).max() + 20
    for _ in range(40):
        middle = (low + high) / 2
        too_many = (logits + middle).sigmoid() @ shares > density
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
    return (low + high) / 2
