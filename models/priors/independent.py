"""Independent masks, with inclusion probabilities by role and block.

References:
    Mitchell & Beauchamp, "Bayesian Variable Selection in Linear Regression", JASA 1988.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.distributions import Gaussian, SpikeAndSlab, StraightThroughBernoulli
from pyro_isingvit.errors import InputError, check_positive
from pyro_isingvit.network import LAYER, WeightSite, by_name

from .base import Prior
from .size import inclusion_expecting

Inclusion = float | Mapping[str, float | Sequence[float]]
"""One inclusion probability for all weights; or, by site name, one for the site or one for each of its blocks.

Sites that are not named have `DEFAULT`."""

DEFAULT = 0.2
"""Prior inclusion probability where none is given."""


class IndependentSpikeSlab(Prior):
    """``mask ~ Bernoulli(inclusion)``; ``weight ~ Normal(0, slab_scale / sqrt(fan_in))`` if kept, spike if dropped.

    Args:
        sites: the network's `weight_sites()`.
        inclusion: prior probability that a weight is kept, within (0, 1); see `Inclusion`, e.g.
            ``{"encoder.up": [0.1, 0.3], "classifier.out": 0.9}``.
        slab_scale: scale of a weight that is kept, in multiples of ``1 / sqrt(fan_in)``.
        spike_scale: scale of a weight that is dropped, in the same multiples, within [0, slab_scale); with 0 it is
            exactly zero.
        learn_slab_scale: whether each role's slab scale is a parameter, learned with the guide (empirical Bayes).

    Raises:
        InputError: if a value is out of range, a site is unknown, or the number of probabilities is not that of blocks.
    """

    def __init__(
        self,
        sites: Sequence[WeightSite],
        inclusion: Inclusion = DEFAULT,
        slab_scale: float = 1.0,
        spike_scale: float = 0.0,
        learn_slab_scale: bool = False,
    ) -> None:
        super().__init__(sites)
        check_positive("slab_scale", slab_scale, "1.0")
        if not 0 <= spike_scale < slab_scale:
            raise InputError(f"spike_scale={spike_scale}: must lie within [0, slab_scale={slab_scale}); 0 is exact")
        self.inclusion, self.slab_scale, self.spike_scale = inclusion, slab_scale, spike_scale
        self.learn_slab_scale = learn_slab_scale
        self._inclusions = _by_site(by_name(sites), inclusion)
        self.log_slab_scale = nn.ParameterDict(
            {site.key: nn.Parameter(torch.tensor(math.log(slab_scale))) for site in sites} if learn_slab_scale else {}
        )

    @classmethod
    def expecting(
        cls, sites: Sequence[WeightSite], *, weights: float | None = None, units: float | None = None, **options: Any
    ) -> Self:
        """The prior that is expected to keep a given number of weights, or of units.

        All masks have the same inclusion probability without their neighbours. Without an interaction it is the share
        itself; with one it is found such that draws from the prior have this mean, by Gibbs sampling if there are many
        masks, to some 5 % (10 % if a few dozen are expected).

        Args:
            sites: the network's `weight_sites()`.
            weights: expected number of weights that are kept, of those with masks.
            units: expected number of masks that are 1, where a mask is that of a unit; give it or ``weights``.
            options: further arguments of the class, except ``inclusion``.

        Raises:
            InputError: if not exactly one number is given, it is out of range, or ``inclusion`` is given.

        Example:
            >>> prior = IsingSpikeSlab.expecting(sites, weights=5000, coupling=0.5)  # doctest: +SKIP
        """
        if "inclusion" in options:
            raise InputError(f"inclusion={options['inclusion']}: follows from the expected number; leave it out")

        inclusion = inclusion_expecting(lambda share: cls(sites, inclusion=share, **options), weights, units)
        return cls(sites, inclusion=inclusion, **options)

    def inclusion_of(self, site: WeightSite) -> float | Tensor:
        """Prior inclusion probability of a site's masks: a number, or a tensor that broadcasts to ``site.shape``."""
        return self._inclusions[site.name]

    def check(self) -> None:
        with poutine.block(), torch.random.fork_rng(devices=[]), torch.no_grad():
            every = {site: torch.as_tensor(self.inclusion_of(site)) for site in self.masked()}
        for site, probs in every.items():
            sizes = zip(reversed(probs.shape), reversed(site.shape), strict=False)
            if probs.dim() > len(site.shape) or any(n not in (1, size) for n, size in sizes):
                raise InputError(
                    f"inclusion_of({site.name}) has shape {tuple(probs.shape)}: it has to broadcast to the site's, "
                    f"{site.shape} over {site.dims}"
                )
            wrong = probs[~((probs > 0) & (probs < 1))]  # NaN, too
            if wrong.numel():
                raise InputError(
                    f"inclusion_of({site.name}) has {float(wrong[0]):g}: a prior probability lies strictly between 0 "
                    "and 1"
                )

    def masked(self) -> list[WeightSite]:
        """The sites that have masks."""
        return list(self.sites.values())

    def mask(self, site: WeightSite) -> TorchDistributionMixin | None:
        return StraightThroughBernoulli(logits=self._log_odds(site), event_dim=len(site.shape), shape=site.shape)

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        if mask is None:
            raise InputError(f"mask=None at site {site.name!r}: {type(self).__name__} needs a mask for every site")
        return SpikeAndSlab(mask, self.slab(site), self.spike(site), len(site.shape))

    def slab(self, site: WeightSite) -> TorchDistributionMixin:
        learned = site.key in self.log_slab_scale
        return self._centred(site, self.log_slab_scale[site.key] if learned else math.log(self.slab_scale))

    def spike(self, site: WeightSite) -> TorchDistributionMixin | None:
        """Distribution of a weight that is dropped, batch shape ``site.shape``; None if it is exactly zero."""
        return self._centred(site, math.log(self.spike_scale)) if self.spike_scale else None

    def _log_odds(self, site: WeightSite) -> Tensor:
        probs = self.inclusion_of(site)
        if isinstance(probs, Tensor):
            return self.zero + probs.to(self.zero.device).logit()
        if not 0 < probs < 1:
            raise InputError(f"inclusion={probs} of {site.name}: a prior probability lies strictly between 0 and 1")
        return self.zero + math.log(probs / (1 - probs))

    def _centred(self, site: WeightSite, log_scale: float | Tensor) -> Gaussian:
        return Gaussian(self.zero, self.zero + (log_scale - 0.5 * math.log(site.fan_in)), site.shape)


def _by_site(sites: Mapping[str, WeightSite], inclusion: Inclusion) -> dict[str, float | Tensor]:
    """The inclusion probability of each site; a tensor that broadcasts to its shape if it differs among blocks."""
    given = inclusion if isinstance(inclusion, Mapping) else dict.fromkeys(sites, inclusion)
    unknown = set(given) - set(sites)
    if unknown:
        raise InputError(f"inclusion={inclusion}: no site {sorted(unknown)}; there are {list(sites)}")
    table: dict[str, float | Tensor] = {}
    for name, site in sites.items():
        value = given.get(name, DEFAULT)
        each = [value] if isinstance(value, (int, float)) else list(value)
        if not all(0 < p < 1 for p in each):
            raise InputError(f"inclusion={value}: a prior probability lies strictly between 0 and 1, e.g. 0.2")
        if isinstance(value, (int, float)):
            table[name] = float(value)
            continue
        if LAYER not in site.dims or len(each) != site.shape[site.axis(LAYER)]:
            raise InputError(f"inclusion={value} of {name}: needs one value for each of its blocks; dims {site.dims}")
        shape = [-1 if dim == LAYER else 1 for dim in site.dims]
        table[name] = torch.tensor(each).view(shape)
    return table
