"""A Bernoulli distribution that draws exact zeros and ones, with the straight-through gradient.

References:
    Bengio, Leonard & Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
"""

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions.utils import logits_to_probs, probs_to_logits

from .shapes import common_shape, sum_event


class StraightThroughBernoulli(TorchDistribution):
    r"""Bernoulli distribution over tensors, with the straight-through gradient :math:`\partial x/\partial p = 1`.

    A draw is ``b + (p - p.detach())`` with ``b`` exactly 0 or 1. For a function that is linear in each element of
    ``x``, the gradient is unbiased; for any other, it is the gradient of its linear part at the draw. If both model and
    guide use this distribution, `TraceGraph_ELBO` need not track the provenance of a discrete site. ``log_prob`` is the
    log probability mass, written so that it is linear in ``x``.

    Args:
        probs, logits: probability or log odds of a 1; give exactly one of them.
        event_dim: number of rightmost dimensions that belong to the event.
        shape: batch and event shape together; the parameter broadcasts to it without a copy. If None, the shape of the
            parameter.

    Raises:
        ValueError: if both or neither of ``probs`` and ``logits`` are given, ``event_dim`` or ``shape`` does not fit,
            or (when arguments are validated) a probability is not within [0, 1].
    """

    arg_constraints = {"logits": constraints.real}
    has_rsample = True

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        event_dim: int = 0,
        shape: Sequence[int] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError("StraightThroughBernoulli takes either probs or logits, not both or neither")
        self._logits = probs_to_logits(probs, is_binary=True) if probs is not None else torch.as_tensor(logits)
        full = self._logits.shape if shape is None else torch.Size(shape)
        fits = full == self._logits.shape or common_shape(full, self._logits.shape) == full
        if not fits or not 0 <= event_dim <= len(full):
            raise ValueError(
                f"event_dim={event_dim}, shape={tuple(full)}: does not fit parameters of {tuple(self._logits.shape)}"
            )
        cut = len(full) - event_dim
        super().__init__(full[:cut], full[cut:], validate_args=validate_args)
        if self._validate_args and probs is not None and not ((probs >= 0) & (probs <= 1)).all():
            raise ValueError(f"probs within [{float(probs.min()):g}, {float(probs.max()):g}]: must lie within [0, 1]")

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.boolean, self.event_dim)

    @property
    def given(self) -> Tensor:
        """Log odds as they were given, not expanded to the shape of a draw."""
        return self._logits

    @property
    def logits(self) -> Tensor:
        return self._logits.expand(self.shape())

    @property
    def probs(self) -> Tensor:
        return logits_to_probs(self._logits, is_binary=True).expand(self.shape())

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Self:
        return self._reshaped(torch.Size(batch_shape), self.event_shape)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Self:
        """Move dimensions from the batch to the event, or back if negative; `Independent` would drop `score_parts`."""
        more = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        shape, cut = self.shape(), len(self.batch_shape) - more
        return self._reshaped(shape[:cut], shape[cut:])

    def _reshaped(self, batch_shape: torch.Size, event_shape: torch.Size) -> Self:
        new = copy.copy(self)
        super(StraightThroughBernoulli, new).__init__(batch_shape, event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        probs = logits_to_probs(self._logits, is_binary=True)
        with torch.no_grad():  # a comparison is several times faster than torch.bernoulli
            uniform = torch.rand(self._extended_shape(sample_shape), dtype=probs.dtype, device=probs.device)
            draw = (uniform < probs).to(probs.dtype)
        return draw + (probs - probs.detach()) if probs.requires_grad else draw

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_mass(value, self._logits)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """No score function, and an entropy term whose gradient is exactly that of the entropy.

        The derivative of log q(x) with respect to its own parameters, at fixed x, has mean zero and is left out.
        """
        log_prob = self.log_prob(x)
        if not log_prob.requires_grad:
            return ScoreParts(log_prob, 0, log_prob)
        return ScoreParts(log_prob, 0, self._log_mass(x, self._logits.detach()))

    def entropy(self) -> Tensor:
        return self._sum(F.softplus(self.logits) - self.probs * self.logits)

    def _log_mass(self, value: Tensor, logits: Tensor) -> Tensor:
        if not logits.shape:  # one probability for all elements: count the ones
            return self._sum(value) * logits - self.event_shape.numel() * F.softplus(logits)
        return self._sum(value * logits - F.softplus(logits))

    def _sum(self, elements: Tensor) -> Tensor:
        return sum_event(elements, self.batch_shape, self.event_shape)
