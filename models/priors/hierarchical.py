"""Inclusion probabilities that are latent variables, one for each role or block.

References:
    Scott & Berger, "Bayes and Empirical-Bayes Multiplicity Adjustment in the Variable-Selection Problem",
    Annals of Statistics 2010.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyro
from pyro.distributions import Beta
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_isingvit.distributions import StraightThroughBernoulli
from pyro_isingvit.errors import InputError, check_positive
from pyro_isingvit.network import LAYER, WeightSite

from .independent import DEFAULT, IndependentSpikeSlab


class HierarchicalSpikeSlab(IndependentSpikeSlab):
    """`IndependentSpikeSlab` with a latent inclusion probability for each role, or for each block of it.

    The probability has a Beta prior; its sample site is ``<site>.inclusion``.

    Args:
        sites: the network's `weight_sites()`.
        inclusion: mean of the Beta distribution, which `inclusion_of` returns.
        concentration: sum of the pseudo-counts of the Beta distribution; the larger, the closer the probabilities are
            to their mean.
        by: whether all masks of a ``"role"`` share one probability, or those of each block of it (``"layer"``).
        options: arguments of `IndependentSpikeSlab`.

    Raises:
        InputError: if a value is out of range.
    """

    def __init__(
        self,
        sites: Sequence[WeightSite],
        inclusion: float = DEFAULT,
        concentration: float = 10.0,
        by: Literal["role", "layer"] = "layer",
        **options: Any,
    ) -> None:
        super().__init__(sites, inclusion, **options)
        check_positive("concentration", concentration, "10")
        if by not in ("role", "layer"):
            raise InputError(f"by={by!r}: choose 'role' or 'layer'")
        self.concentration, self.by = concentration, by

    def mask(self, site: WeightSite) -> TorchDistributionMixin | None:
        shape = [n if d == LAYER and self.by == "layer" else 1 for n, d in zip(site.shape, site.dims, strict=True)]
        ones = (self.zero + self.concentration).expand(shape)
        mean = self.inclusion_of(site)
        beta = Beta(ones * mean, ones * (1 - mean)).to_event(len(shape))
        inclusion = pyro.sample(f"{site.name}.inclusion", beta)
        return StraightThroughBernoulli(inclusion, event_dim=len(site.shape), shape=site.shape)
