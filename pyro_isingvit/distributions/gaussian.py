"""A normal distribution parametrised by its log scale, fast enough for many large tensors in every training step."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import Normal, constraints
from torch import Tensor
from torch.distributions import Distribution, register_kl

from .shapes import common_shape

LOG_SQRT_TAU = 0.5 * math.log(2 * math.pi)


class Gaussian(Normal):
    """`Normal(loc, exp(log_scale))`, with parameters that broadcast to ``shape`` without a copy.

    Args:
        loc: mean.
        log_scale: natural logarithm of the standard deviation.
        shape: batch shape; the common shape of the parameters if None.
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}

    def __init__(
        self, loc: Tensor, log_scale: Tensor, shape: Sequence[int] | None = None, validate_args: bool | None = None
    ) -> None:
        self._loc, self._log_scale = loc, log_scale
        full = common_shape(loc.shape, log_scale.shape) if shape is None else torch.Size(shape)
        Distribution.__init__(self, full, validate_args=validate_args)

    @property
    def given(self) -> tuple[Tensor, Tensor]:
        """Mean and log scale as they were given, not expanded to the batch shape."""
        return self._loc, self._log_scale

    @property
    def loc(self) -> Tensor:
        return self._loc.expand(self.batch_shape)

    @property
    def log_scale(self) -> Tensor:
        return self._log_scale.expand(self.batch_shape)

    @functools.cached_property
    def _scale(self) -> Tensor:
        return self._log_scale.exp()

    @property
    def scale(self) -> Tensor:
        return self._scale.expand(self.batch_shape)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Self:
        new = self._get_checked_instance(Gaussian, _instance)
        new._loc, new._log_scale = self._loc, self._log_scale
        Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self._loc.dtype, device=self._loc.device)
        return torch.addcmul(self._loc, self._scale, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        standard = (value - self._loc) / self._scale
        return torch.addcmul(-LOG_SQRT_TAU - self._log_scale, standard, standard, value=-0.5)

    def pathwise_log_prob(self, value: Tensor) -> Tensor:
        """`log_prob` of a draw from this distribution, with its total derivative along the reparametrisation.

        The standardised draw is constant along the path, so that only the log scale gets a gradient.
        """
        with torch.no_grad():
            standard = (value - self._loc) / self._scale
            constant = torch.addcmul(torch.full_like(standard, -LOG_SQRT_TAU), standard, standard, value=-0.5)
        return constant - self._log_scale


@register_kl(Gaussian, Gaussian)
def _kl_gaussian(q: Gaussian, p: Gaussian) -> Tensor:
    precision = 0.5 / p._scale.square()
    kl = (q._scale.square() + (q._loc - p._loc).square()) * precision + (p._log_scale - q._log_scale - 0.5)
    return kl.expand(common_shape(q.batch_shape, p.batch_shape))
