"""Independent masks: every weight is in with the same probability.

References:
    Mitchell & Beauchamp, "Bayesian Variable Selection in Linear Regression", JASA 1988.
"""

import math
from collections.abc import Sequence

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.distributions import Gaussian, SpikeAndSlab, StraightThroughBernoulli
from pyro_isingvit.errors import InputError
from pyro_isingvit.sites import WeightSite

from .base import Prior


class IndependentSpikeSlab(Prior):
    """``mask ~ Bernoulli(inclusion)``; ``weight ~ Normal(0, slab_scale / sqrt(fan_in))`` where in, spike where out.

    Args:
        sites: the network's `weight_sites()`.
        inclusion: prior probability that a weight is in, within (0, 1).
        slab_scale: scale of a weight that is in, in multiples of ``1 / sqrt(fan_in)``.
        spike_scale: the same for one that is out; 0 puts it exactly at zero.

    Raises:
        InputError: if a value is out of range.
    """

    def __init__(
        self,
        sites: Sequence[WeightSite],
        inclusion: float = 0.2,
        slab_scale: float = 1.0,
        spike_scale: float = 0.0,
    ) -> None:
        super().__init__(sites)
        if not 0 < inclusion < 1:
            raise InputError(f"inclusion={inclusion}: a prior probability lies strictly between 0 and 1, e.g. 0.2")
        if slab_scale <= 0:
            raise InputError(f"slab_scale={slab_scale}: must be positive, e.g. 1.0")
        if not 0 <= spike_scale < slab_scale:
            raise InputError(f"spike_scale={spike_scale}: must lie within [0, slab_scale={slab_scale}); 0 is exact")
        self.inclusion, self.slab_scale, self.spike_scale = inclusion, slab_scale, spike_scale

    def inclusion_of(self, site: WeightSite) -> float | Tensor:
        """Prior inclusion probability of a site's masks; a scalar, or a tensor that broadcasts to its shape."""
        return self.inclusion

    def mask(self, site: WeightSite) -> TorchDistributionMixin | None:
        return StraightThroughBernoulli(logits=self._log_odds(site), event_dim=len(site.shape), shape=site.shape)

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        if mask is None:
            raise InputError(f"mask=None at site {site.name!r}: {type(self).__name__} needs a mask for every site")
        return SpikeAndSlab(mask, self.slab(site), self.spike(site), len(site.shape))

    def slab(self, site: WeightSite) -> TorchDistributionMixin:
        return self._centred(site, self.slab_scale)

    def spike(self, site: WeightSite) -> TorchDistributionMixin | None:
        """A weight that is out: batch shape equal to the site's, or None for exactly zero."""
        return self._centred(site, self.spike_scale) if self.spike_scale else None

    def _log_odds(self, site: WeightSite) -> Tensor:
        probs = self.inclusion_of(site)
        return self.zero + math.log(probs / (1 - probs)) if isinstance(probs, float) else self.zero + probs.logit()

    def _centred(self, site: WeightSite, scale: float) -> Gaussian:
        return Gaussian(self.zero, self.zero + math.log(scale) - 0.5 * math.log(site.fan_in), site.shape)
