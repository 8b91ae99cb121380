"""The regularised horseshoe: continuous shrinkage, no masks.

References:
    Piironen & Vehtari, "Sparsity Information and Regularization in the Horseshoe and Other Shrinkage Priors",
    Electronic Journal of Statistics 2017.
"""

import math
from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import HalfCauchy
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.distributions import Gaussian
from pyro_isingvit.errors import check_positive
from pyro_isingvit.network import WeightSite

from .base import Prior


class RegularisedHorseshoe(Prior):
    r"""``weight ~ Normal(0, tau * lambda~ / sqrt(fan_in))`` with half-Cauchy scales, the local ones capped by the slab.

    :math:`\tilde\lambda^2 = c^2 \lambda^2 / (c^2 + \tau^2 \lambda^2)`. Sample sites ``<site>.global`` (tau) and
    ``<site>.local`` (lambda, one for each weight) come before ``<site>.weight``.

    Args:
        sites: the network's `weight_sites()`.
        global_scale: scale of the half-Cauchy prior of tau; smaller values shrink more.
        slab_scale: c, the scale of weights that are not shrunk, in multiples of ``1 / sqrt(fan_in)``.

    Raises:
        InputError: if a value is not positive.
    """

    def __init__(self, sites: Sequence[WeightSite], global_scale: float = 0.1, slab_scale: float = 1.0) -> None:
        super().__init__(sites)
        for name, value in (("global_scale", global_scale), ("slab_scale", slab_scale)):
            check_positive(name, value, "1.0")
        self.global_scale, self.slab_scale = global_scale, slab_scale

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        tau = pyro.sample(f"{site.name}.global", HalfCauchy(self.zero + self.global_scale))
        shape = site.shape
        local = pyro.sample(f"{site.name}.local", HalfCauchy((self.zero + 1).expand(shape)).to_event(len(shape)))
        log_scale = (tau * local).log() - 0.5 * torch.log1p((tau * local / self.slab_scale).square())
        return Gaussian(self.zero, log_scale - 0.5 * math.log(site.fan_in)).to_event(len(shape))
