"""Masks of the features of a patch alone; all other weights are kept.

References:
    Neal, "Bayesian Learning for Neural Networks", 1996 (relevance of inputs).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.distributions import StraightThroughBernoulli
from pyro_isingvit.network import WeightSite

from .independent import IndependentSpikeSlab
from .structured import checked_levels, levels_of, shared_shape

FEATURES: Mapping[str, tuple[str, ...]] = levels_of("patch")
"""One mask for all weights of a feature of a patch: of a pixel's place in it, in one channel."""


class FeatureSpikeSlab(IndependentSpikeSlab):
    """One mask for all weights that read a feature of a patch; the weights of all other sites have none.

    This is the prior to ask which inputs matter. Input features can be told apart by the data, so that their inclusion
    probabilities have a meaning at temperature 1. A posterior over masks of all weights drops nearly all of them there.

    Args:
        sites: the network's `weight_sites()`.
        levels: the dimensions along which masks differ, by site name; sites that are not named have no masks.
        options: arguments of `IndependentSpikeSlab`.

    Raises:
        InputError: if a site or a dimension is unknown.
    """

    def __init__(
        self, sites: Sequence[WeightSite], levels: Mapping[str, tuple[str, ...]] = FEATURES, **options: Any
    ) -> None:
        self.levels = checked_levels(sites, levels)
        super().__init__(sites, **options)

    def masked(self) -> list[WeightSite]:
        return [site for name, site in self.sites.items() if name in self.levels]

    def mask(self, site: WeightSite) -> TorchDistributionMixin | None:
        if site.name not in self.levels:
            return None
        shape = shared_shape(site, self.levels[site.name])
        return StraightThroughBernoulli(logits=self._log_odds(site), event_dim=len(shape), shape=shape)

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        return self.slab(site).to_event(len(site.shape)) if mask is None else super().weight(site, mask)
