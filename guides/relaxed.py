"""Masks that learn through the concrete relaxation.

References:
    Louizos, Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.
"""

from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_isingvit.distributions import StraightThroughConcrete
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.sites import WeightSite

from .mean_field import MeanField


class Relaxed(MeanField):
    """`MeanField` whose masks are exact zeros and ones with the gradient of their concrete relaxation.

    Args:
        model, initial_logit, initial_scale, mask_rate: see `MeanField`.
        relaxation: temperature of the concrete distribution.
    """

    def __init__(
        self,
        model: IsingViT,
        initial_logit: float = 4.0,
        initial_scale: float = 5e-3,
        mask_rate: float = 20.0,
        relaxation: float = 0.5,
    ) -> None:
        super().__init__(model, initial_logit, initial_scale, mask_rate)
        self.relaxation = relaxation

    def mask(self, site: WeightSite) -> TorchDistributionMixin:
        logit = self.logit[site.key]
        return StraightThroughConcrete(logits=logit, event_dim=logit.dim(), temperature=self.relaxation)
