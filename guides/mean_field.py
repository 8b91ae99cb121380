"""Independent masks and weights, learned by gradient."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.distributions import Gaussian, SpikeAndSlab, StraightThroughBernoulli
from pyro_isingvit.errors import InputError, check_positive
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.network import WeightSite
from pyro_isingvit.programs import full_precision

from .base import Guide, initial_weights
from .joint import JointDraw, Layout, Masks, Scales, Weights, has_closed_form

Made = TypeVar("Made")

DRAWN_AT_ONCE = ("mask", "weight", "slab", "draw_masks", "forward")
"""Methods that `MeanField.draw_jointly` takes the place of, so that a subclass that overrides one is drawn by it."""


class MeanField(Guide):
    """``mask ~ Bernoulli(sigmoid(logit))``, ``weight ~ Normal(loc, scale)`` if kept, the prior's spike if dropped.

    Masks are learned by the straight-through gradient, whose likelihood term is biased; `LikelihoodGuided`
    replaces it by coordinate updates.

    Args:
        model: the model whose posterior this approximates.
        initial_logit: initial logit of every mask; high, so that training starts from the whole network.
        initial_scale: initial scale of every weight.
        mask_rate: learning rate of the logits, in multiples of that of the weights.
        unit_scales: whether all weights that a unit reads share one scale, which saves memory.

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
        unit_scales: bool = False,
    ) -> None:
        super().__init__(model)
        check_positive("initial_scale", initial_scale, "5e-3")
        check_positive("mask_rate", mask_rate, "20")
        if not math.isfinite(initial_logit):
            raise InputError(f"initial_logit={initial_logit}: must be finite, e.g. 4.0")
        self.initial_logit, self.initial_scale, self.mask_rate = initial_logit, initial_scale, mask_rate
        self.unit_scales = unit_scales
        start, device = initial_weights(model), model.prior.zero.device
        self.loc = nn.ParameterDict({key: nn.Parameter(weight) for key, weight in start.items()})
        shapes = {site.key: site.unit_shape if unit_scales else site.shape for site in model.sites}
        self.log_scale = nn.ParameterDict(
            {key: nn.Parameter(weight.new_full(shapes[key], math.log(initial_scale))) for key, weight in start.items()}
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
            with self.hypers_at_median():
                bases = {site.name: model.prior.mask(site) for site in model.sites}
        closed = all(has_closed_form(bases[name], prior) for name, prior in priors.items())
        self._closed = closed and not any(self._hypers.values())
        self._layout, self._made = Layout([site.shape for site in model.sites]), dict[str, Any]()
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

    def draw_jointly(self) -> JointDraw | None:
        own = all(getattr(type(self), name) is getattr(MeanField, name) for name in DRAWN_AT_ONCE)
        if not (self._closed and own):
            return None
        self.begin()
        sites, fixed, one = self.model.sites, self.model.fixed_masks, self.model.prior.zero + 1
        with full_precision(one.device):
            logits = {site.name: self.logit[site.key] for site in sites if site.name in self.mask_shapes}
            of_masks = self._kept("masks", logits, Masks) if logits and fixed is None else None
            masks, every = dict(fixed or {}), None
            if of_masks is not None:
                drawn = of_masks.draw()
                masks = of_masks.by_site(drawn)
                every = drawn if of_masks.layout.shapes == self._layout.shapes else None  # a mask for each weight
            if every is None:
                every = self._layout.join([masks.get(site.name, one) for site in sites])
            log_scales = {site.name: self.log_scale[site.key] for site in sites}
            scales = self._kept("scales", log_scales, lambda given: Scales(list(given.values()), self._layout))
            of_weights = Weights([self.loc[site.key] for site in sites], scales, every, self._layout)
            weights = {site.name: weight for site, weight in zip(sites, of_weights.draw(), strict=True)}
        return JointDraw(masks, weights, of_masks, of_weights)

    def slab(self, site: WeightSite) -> TorchDistributionMixin:
        """Distribution of a weight that is kept, batch shape ``site.shape``."""
        return Gaussian(self.loc[site.key], self.log_scale[site.key])

    def _prior_weight(self, site: WeightSite, mask: Tensor | None) -> Any:
        with self.hypers_at_median():
            return self.model.prior.weight(site, mask)

    def _kept(self, name: str, parameters: dict[str, Tensor], make: Callable[[dict[str, Tensor]], Made]) -> Made:
        """What is made from parameters; made again only once they have changed, or if it needs their gradients.

        A change through ``.data``, which torch does not count, is noticed after the next `forget`, and so is one of a
        prior without gradients.
        """
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters.values()):
            return make(parameters)
        state = [(parameter.data_ptr(), parameter._version) for parameter in parameters.values()]
        before, made = self._made.get(name, (None, None))
        if state != before:
            made = make(parameters)
            self._made[name] = state, made
        return made

    def forget(self) -> None:
        super().forget()
        self._made.clear()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_made": {}}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        logits = [p for p in self.logit.values() if p.requires_grad]
        known = {id(p) for p in logits}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": others, "lr": learning_rate}]
        return [*groups, {"params": logits, "lr": learning_rate * self.mask_rate}] if logits else groups
