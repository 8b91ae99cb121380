"""Improper uniform weights: with a point estimate, plain maximum likelihood."""

from pyro.distributions import ImproperUniform, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.network import WeightSite

from .base import Prior


class _Improper(ImproperUniform):
    has_rsample = True  # else TraceGraph_ELBO tracks every tensor computed from a weight, at three times the cost


class Flat(Prior):
    """Improper uniform weights, no masks. `PointEstimate` under it is the deterministic network."""

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        return _Improper(constraints.real, (), site.shape)
