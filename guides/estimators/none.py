"""No likelihood at all, for comparison."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import WeightSite

from .base import gradients
from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class NoPull(SquaredGradient):
    """Ignores the likelihood: masks follow the prior and the weights alone."""

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        return torch.zeros_like(slab.mean)
