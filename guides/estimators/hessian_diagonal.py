"""The exact diagonal of the Hessian, for small networks and for comparison."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import WeightSite

from .base import Estimator

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class HessianDiagonal(Estimator):
    """The exact diagonal of the Hessian on a batch, by one product with the Hessian for every weight.

    This takes thousands of passes, so it is for small networks and for comparison. `curvature` is its positive part.

    Args:
        model, decay: see `Estimator`; the decay is per evaluation of the Hessian.
        every: number of updates of the masks from one evaluation to the next.
        chunk: number of weights that are evaluated at once.
    """

    counters = ("_calls",)

    def __init__(self, model: IsingViT, decay: float = 0.5, every: int = 20, chunk: int = 128) -> None:
        super().__init__(model, decay)
        self.every, self.chunk, self._calls = every, chunk, 0
        self.diagonal = self.average()

    def prepare(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        if not self.diagonal.weight:  # no evaluation yet, or training was restarted
            self._calls = 0
        if self._calls % self.every == 0:
            scale = seen.num_data / len(seen.images)
            diagonal = hessian_diagonal(guide.model, seen, self.chunk)
            self.diagonal.take_in([diagonal[site.name] for site in self.sites], scale)
        self._calls += 1

    def curvature(self, site: WeightSite) -> Tensor:
        return self.diagonal.of(site).clamp_min(0)

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        return slab.mean * slope + 0.5 * (slab.mean.square() - slab.variance) * self.diagonal.of(site)


def hessian_diagonal(model: IsingViT, seen: Pass, chunk: int = 128) -> dict[str, Tensor]:
    """The exact diagonal of the Hessian of a batch's negative log-likelihood, by site name, in the sites' shapes."""
    assert seen.labels is not None
    labels = seen.labels
    weights = {name: weight.detach() for name, weight in seen.weights.items()}

    def loss(of: dict[str, Tensor]) -> Tensor:
        return -model.likelihood.log_prob(model.logits(seen.images, of).float(), labels).sum()

    result = {}
    for name, weight in weights.items():
        slope = torch.func.grad(lambda w, name=name: loss(weights | {name: w}))
        product = torch.func.vjp(slope, weight)[1]  # the Hessian is symmetric

        def entry(unit: Tensor, product: Any = product, weight: Tensor = weight) -> Tensor:
            return (product(unit.view_as(weight))[0].flatten() * unit).sum()

        rows = []
        for indices in torch.arange(weight.numel(), device=weight.device).split(chunk):
            units = F.one_hot(indices, weight.numel()).to(weight.dtype)
            rows.append(torch.func.vmap(entry)(units))
        result[name] = torch.cat(rows).view_as(weight)
    return result
