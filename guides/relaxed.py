"""Masks that are learned through the concrete relaxation.

References:
    Louizos, Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.
"""

from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_isingvit.distributions import StraightThroughConcrete
from pyro_isingvit.errors import check_positive
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.network import WeightSite

from .mean_field import MeanField


class Relaxed(MeanField):
    """`MeanField` whose masks are exact zeros and ones with the gradient of their concrete relaxation.

    Args:
        model: the model whose posterior this approximates.
        relaxation: relaxation temperature of the concrete distribution, positive; smaller is less biased and noisier.
        options: arguments of `MeanField`.

    Raises:
        InputError: if a value is out of range.
    """

    def __init__(self, model: IsingViT, relaxation: float = 0.5, **options: Any) -> None:
        super().__init__(model, **options)
        check_positive("relaxation", relaxation, "0.5")
        self.relaxation = relaxation

    def mask(self, site: WeightSite) -> TorchDistributionMixin:
        logit = self.logit[site.key]
        return StraightThroughConcrete(logits=logit, event_dim=logit.dim(), temperature=self.relaxation)
