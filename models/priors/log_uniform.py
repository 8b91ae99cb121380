"""The scale-free prior of sparse variational dropout.

References:
    Molchanov, Ashukha & Vetrov, "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017.
"""

from pyro.distributions import ImproperUniform, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.network import WeightSite

from .base import Prior

SMALLEST = 1e-20
"""Magnitudes are clamped to at least this."""


class _LogUniform(ImproperUniform):
    has_rsample = True  # as for `Flat`

    def log_prob(self, value: Tensor) -> Tensor:
        dims = tuple(range(value.dim() - len(self.event_shape), value.dim()))
        return -value.abs().clamp_min(SMALLEST).log().sum(dims)


class LogUniform(Prior):
    """Improper density ``1 / |weight|``: every order of magnitude is equally likely. No masks.

    The guide `SparseVariationalDropout` requires this prior.
    """

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        return _LogUniform(constraints.real, (), site.shape)
