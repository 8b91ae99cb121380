"""The first-order estimate of the gain from keeping a weight, for comparison."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import WeightSite

from .base import gradients
from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class StraightThrough(SquaredGradient):
    """The first-order estimate, weight times gradient. For comparison only: its noise makes masks collapse."""

    def __init__(self, model: IsingViT, decay: float = 0.98) -> None:
        super().__init__(model, decay)
        self.slopes = self.average()

    def update(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        super().update(guide, seen)
        each = zip(self.sites, gradients(seen, self.sites), strict=True)
        self.slopes.take_in([guide.loc[site.key] * gradient for site, gradient in each], -seen.temperature)

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        return self.slopes.of(site)
