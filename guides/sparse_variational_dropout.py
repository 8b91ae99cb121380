"""Gaussian noise with its own variance on every weight; weights that are mostly noise are dropped.

References:
    Molchanov, Ashukha & Vetrov, "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017.
"""

import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.distributions import Gaussian, SpikeAndSlab
from pyro_isingvit.errors import InputError, check_positive
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.models.priors import LogUniform
from pyro_isingvit.models.priors.log_uniform import SMALLEST
from pyro_isingvit.network import WeightSite

from .base import Guide, initial_weights

DROPPED = 3.0
"""A weight is dropped if log alpha, the log of its noise variance over its squared mean, is at least this."""


class SparseVariationalDropout(Guide):
    """``weight ~ Normal(loc, scale)`` under `LogUniform`, a baseline without masks.

    A weight with ``log alpha = log(scale ** 2 / loc ** 2)`` of 3 or more is dropped: its inclusion probability is 0,
    that of all others is 1, and predictions set it to zero. The KL divergence from the prior is the published
    approximation, not an estimate from one draw.

    Args:
        model: the model whose posterior this approximates; its prior is `LogUniform`.
        initial_scale: initial scale of every weight.
        scale_rate: learning rate of the log scales, in multiples of that of the means.

    Raises:
        InputError: if the prior is not `LogUniform`, or a value is out of range.
    """

    sparsifies = True

    def __init__(self, model: IsingViT, initial_scale: float = 5e-3, scale_rate: float = 5.0) -> None:
        super().__init__(model)
        if not isinstance(model.prior, LogUniform):
            raise InputError(f"prior={type(model.prior).__name__}: SparseVariationalDropout is made for LogUniform")
        for name, value in (("initial_scale", initial_scale), ("scale_rate", scale_rate)):
            check_positive(name, value, "5e-3")
        self.initial_scale, self.scale_rate, start = initial_scale, scale_rate, initial_weights(model)
        self.loc = nn.ParameterDict({key: nn.Parameter(weight) for key, weight in start.items()})
        self.log_scale = nn.ParameterDict(
            {key: nn.Parameter(torch.full_like(weight, math.log(initial_scale))) for key, weight in start.items()}
        )

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        loc = self.loc[site.key]
        if mask is None:
            mask = torch.ones_like(loc) if self.training else self._inside(site)
        return SpikeAndSlab(mask, _Noisy(loc, self.log_scale[site.key]), event_dim=len(site.shape))

    @torch.no_grad()
    def inclusion_probabilities(self) -> dict[str, Tensor]:
        return {site.name: self._inside(site) for site in self.model.sites}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [
            {"params": list(self.loc.parameters()), "lr": learning_rate},
            {"params": list(self.log_scale.parameters()), "lr": learning_rate * self.scale_rate},
        ]

    def _inside(self, site: WeightSite) -> Tensor:
        loc = self.loc[site.key]
        return (_log_alpha(loc, self.log_scale[site.key]) < DROPPED).to(loc.dtype)


class _Noisy(Gaussian):
    """A `Gaussian` whose `pathwise_log_prob`, minus the prior's log density of a draw, is the `divergence`."""

    def pathwise_log_prob(self, value: Tensor) -> Tensor:
        return divergence(self._loc, self._log_scale) - value.abs().clamp_min(SMALLEST).log()


def divergence(loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL divergence of each weight from the log-uniform prior, up to a constant: equation 14 of Molchanov et al."""
    log_alpha = _log_alpha(loc, log_scale)
    return -0.63576 * (torch.sigmoid(1.87320 + 1.48695 * log_alpha) - 1) + 0.5 * nn.functional.softplus(-log_alpha)


def _log_alpha(loc: Tensor, log_scale: Tensor) -> Tensor:
    return 2 * (log_scale - loc.abs().clamp_min(1e-8).log())
