"""No likelihood at all, for comparison."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.network import WeightSite

from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    pass


class NoPull(SquaredGradient):
    """Ignores the likelihood: masks follow the prior and the weights alone."""

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        return torch.zeros_like(slab.mean)
