"""Distribution of a weight given its mask: the slab where the mask is 1, the spike where it is 0.

References:
    Mitchell & Beauchamp, "Bayesian Variable Selection in Linear Regression", JASA 1988.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import kl_divergence, register_kl
from torch.distributions.utils import broadcast_all

from .gaussian import Gaussian
from .shapes import common_shape, sum_event


class SpikeAndSlab(TorchDistribution):
    r"""The slab where ``mask`` is 1 and the spike where it is 0, element by element.

    :math:`p(w \mid m) = m\,\mathrm{slab}(w) + (1-m)\,\mathrm{spike}(w)` with ``m`` exactly 0 or 1. Without a
    spike, a dropped weight has a point mass at zero: ``log_prob`` is then 0 for ``w = 0`` and minus infinity for any
    other ``w``. With ``validate_args=False`` this is not checked, and ``log_prob`` is 0 for any ``w``.

    ``log_prob`` is linear in the mask, so that a straight-through mask gets a gradient. A draw under a mask that
    requires a gradient has the attribute ``parts``, the draws of both components, and ``log_prob`` evaluates each
    component at its own draw. The gradient of the mask is then an unbiased estimate of the difference that flipping the
    mask makes. The density of the slab at 0, the value of a dropped weight, would not measure the cost of keeping it.

    Args:
        mask: zeros and ones; broadcasts against the slab.
        slab: a reparametrised univariate distribution, batched over the elements.
        spike: a distribution like ``slab``, or None for the point mass at zero.
        event_dim: number of rightmost dimensions that belong to the event.

    Raises:
        ValueError: if a component is not reparametrised or has event dimensions, or ``event_dim`` does not fit.
    """

    arg_constraints = {"mask": constraints.boolean}
    has_rsample = True

    def __init__(
        self,
        mask: Tensor,
        slab: torch.distributions.Distribution,
        spike: torch.distributions.Distribution | None = None,
        event_dim: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        for name, part in (("slab", slab), ("spike", spike)):
            if part is not None and (part.event_shape or not part.has_rsample):
                raise ValueError(f"{name}={part}: needs a reparametrised distribution without event dimensions")
        self.mask, self.slab, self.spike = mask, slab, spike
        shape = common_shape(mask.shape, slab.batch_shape, spike.batch_shape if spike else torch.Size())
        if not 0 <= event_dim <= len(shape):
            raise ValueError(f"event_dim={event_dim} does not fit elements of shape {tuple(shape)}")
        cut = len(shape) - event_dim
        super().__init__(shape[:cut], shape[cut:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def mean(self) -> Tensor:
        return self._mix(self.slab.mean, None if self.spike is None else self.spike.mean).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        # The mask is exactly 0 or 1, so no variance arises between the components.
        return self._mix(self.slab.variance, None if self.spike is None else self.spike.variance).expand(self.shape())

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Self:
        shape = torch.Size(batch_shape) + self.event_shape
        spike = None if self.spike is None else self.spike.expand(shape)
        return type(self)(self.mask.expand(shape), self.slab.expand(shape), spike, self.event_dim, self._validate_args)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Self:
        """Move dimensions from the batch to the event, or back if negative; `Independent` would drop `score_parts`."""
        more = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        return type(self)(self.mask, self.slab, self.spike, self.event_dim + more, self._validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        slab = self.slab.rsample(self._missing(sample_shape, self.slab.batch_shape))
        spike = None if self.spike is None else self.spike.rsample(self._missing(sample_shape, self.spike.batch_shape))
        draw = self._mix(slab, spike)
        if self.mask.requires_grad:
            draw.parts = slab, spike  # type: ignore[attr-defined]
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob(value, self.slab.log_prob)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Score parts of a fully reparametrised draw; a `Gaussian` slab saves most of the backward pass."""
        slab = self.slab
        log_prob = self._log_prob(x, slab.pathwise_log_prob if isinstance(slab, Gaussian) else slab.log_prob)
        return ScoreParts(log_prob, 0, log_prob)

    def _log_prob(self, value: Tensor, slab_log_prob: Callable[[Tensor], Tensor]) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # The gradient of the mask depends on both components, so each is evaluated at a draw of its own.
        of_slab, of_spike = getattr(value, "parts", (value, value))
        if self.spike is not None:
            of_spike = value if of_spike is None else of_spike
            return self._sum(self._mix(slab_log_prob(of_slab), self.spike.log_prob(of_spike)))
        elements = self.mask * slab_log_prob(of_slab)
        if self._validate_args:
            elements = elements.masked_fill((value != 0) & (self.mask == 0), -torch.inf)
        return self._sum(elements)

    def entropy(self) -> Tensor:
        """Differential entropy given the mask. A point-mass spike contributes nothing."""
        return self._sum(self._mix(self.slab.entropy(), None if self.spike is None else self.spike.entropy()))

    def _mix(self, slab: Tensor, spike: Tensor | None) -> Tensor:
        return self.mask * slab if spike is None else self.mask * slab + (1 - self.mask) * spike

    def _missing(self, sample_shape: torch.Size, have: torch.Size) -> torch.Size:
        """Leading shape of the draws of a component, so that elements with shared parameters get independent draws."""
        full = self._extended_shape(sample_shape)
        if full[len(full) - len(have) :] != have:
            raise ValueError(f"a component of batch shape {tuple(have)} does not cover draws of shape {tuple(full)}")
        return full[: len(full) - len(have)]

    def _sum(self, elements: Tensor) -> Tensor:
        return sum_event(elements, self.batch_shape, self.event_shape)


@register_kl(SpikeAndSlab, SpikeAndSlab)
def _kl_spike_slab(q: SpikeAndSlab, p: SpikeAndSlab) -> Tensor:
    """KL(q || p) given the same mask, summed over the event."""
    slab = kl_divergence(q.slab, p.slab)
    if (q.spike is None) != (p.spike is None):
        raise NotImplementedError("KL between a point-mass spike and a continuous one is infinite")
    spike = None if q.spike is None or p.spike is None else kl_divergence(q.spike, p.spike)
    mask, slab = broadcast_all(q.mask, slab)
    return q._sum(mask * slab if spike is None else mask * slab + (1 - mask) * spike)
