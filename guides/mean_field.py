"""Independent masks and weights, learned by gradient."""

import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.distributions import Gaussian, SpikeAndSlab, StraightThroughBernoulli
from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.network import WeightSite

from .base import Guide, initial_weights


class MeanField(Guide):
    """``mask ~ Bernoulli(sigmoid(logit))``, ``weight ~ Normal(loc, scale)`` if kept, the prior's spike if dropped.

    Masks are learned by the straight-through gradient, whose likelihood term is biased; `LikelihoodGuided`
    replaces it by coordinate updates.

    Args:
        model: the model whose posterior this approximates.
        initial_logit: initial logit of every mask; high, so that training starts from the whole network.
        initial_scale: initial scale of every weight.
        mask_rate: learning rate of the logits, in multiples of that of the weights.

    Raises:
        InputError: if a value is out of range.

    Example: the same scale for all weights of a site.

        >>> class OneScale(MeanField):
        ...     def slab(self, site):
        ...         return Gaussian(self.loc[site.key], self.log_scale[site.key].mean())
    """

    def __init__(
        self,
        model: IsingViT,
        initial_logit: float = 4.0,
        initial_scale: float = 5e-3,
        mask_rate: float = 20.0,
    ) -> None:
        super().__init__(model)
        if initial_scale <= 0:
            raise InputError(f"initial_scale={initial_scale}: must be positive, e.g. 5e-3")
        if mask_rate <= 0:
            raise InputError(f"mask_rate={mask_rate}: must be positive, e.g. 20")
        self.initial_logit, self.initial_scale, self.mask_rate = initial_logit, initial_scale, mask_rate
        start, device = initial_weights(model), model.prior.zero.device
        self.loc = nn.ParameterDict({key: nn.Parameter(weight) for key, weight in start.items()})
        self.log_scale = nn.ParameterDict(
            {key: nn.Parameter(torch.full_like(weight, math.log(initial_scale))) for key, weight in start.items()}
        )
        self.logit = nn.ParameterDict(
            {
                site.key: nn.Parameter(torch.full(self.mask_shapes[site.name], initial_logit, device=device))
                for site in model.sites
                if site.name in self.mask_shapes
            }
        )
        with torch.no_grad():
            ones = {name: torch.ones(shape, device=device) for name, shape in self.mask_shapes.items()}
            priors = {site.name: self._prior_weight(site, ones.get(site.name)) for site in model.sites}
        self._spiked = {name: p.spike is not None for name, p in priors.items() if isinstance(p, SpikeAndSlab)}

    def mask(self, site: WeightSite) -> TorchDistributionMixin:
        logit = self.logit[site.key]
        return StraightThroughBernoulli(logits=logit, event_dim=logit.dim())

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        slab = self.slab(site)
        if mask is None:
            return slab.to_event(len(site.shape))
        spike = self._prior_weight(site, mask).spike if self._spiked.get(site.name) else None
        return SpikeAndSlab(mask, slab, spike, len(site.shape))

    def slab(self, site: WeightSite) -> TorchDistributionMixin:
        """Distribution of a weight that is kept, batch shape ``site.shape``."""
        return Gaussian(self.loc[site.key], self.log_scale[site.key])

    def _prior_weight(self, site: WeightSite, mask: Tensor | None) -> Any:
        with self.hypers_at_median():
            return self.model.prior.weight(site, mask)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        logits = [p for p in self.logit.values() if p.requires_grad]
        known = {id(p) for p in logits}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": others, "lr": learning_rate}]
        return [*groups, {"params": logits, "lr": learning_rate * self.mask_rate}] if logits else groups
