"""An estimator that ignores the likelihood, for comparison."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.network import WeightSite

from .squared_gradient import SquaredGradient


class NoPull(SquaredGradient):
    """Ignores the likelihood: masks depend on the prior and on the distribution of the weights alone."""

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        return torch.zeros_like(slab.mean)
