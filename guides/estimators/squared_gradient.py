"""Curvature from squared minibatch gradients: the default.

References:
    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import WeightSite

from .base import Estimator, gradients, of_all_data

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class SquaredGradient(Estimator):
    r"""Curvature of the log-likelihood from squared minibatch gradients.

    With :math:`\bar g` the gradient of the mean log-likelihood of a batch of ``B`` out of ``N`` images,
    :math:`F = N B\, \mathrm{E}[\bar g^2]` is the diagonal of the empirical Fisher information where the
    mean gradient is zero. It needs no extra pass. Averages are exponential, and corrected for their start at zero.

    Args:
        model, decay: see `Estimator`.
    """

    def __init__(self, model: IsingViT, decay: float = 0.98) -> None:
        super().__init__(model, decay)
        self.squares = self.average()

    def update(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        self.squares.take_in_squares(gradients(seen, self.sites), of_all_data(seen))

    def curvature(self, site: WeightSite) -> Tensor:
        return self.squares.of(site)
