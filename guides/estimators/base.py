"""What an estimator of ``L+ - L-`` is: the curvature that scales follow, and the gain from keeping each weight."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import Linear, WeightSite
from pyro_isingvit.settings import Described

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class Average(nn.Module):
    """Exponential averages of tensors of the shapes of some sites, with the start corrected for.

    Args:
        sites: what is averaged.
        decay: of the averages, an update.
        device: of the averages.
    """

    def __init__(self, sites: Sequence[WeightSite], decay: float, device: torch.device) -> None:
        super().__init__()
        self.decay, self._keys = decay, [site.key for site in sites]
        self.sums = nn.ParameterDict(
            {s.key: nn.Parameter(torch.zeros(s.shape, device=device), requires_grad=False) for s in sites}
        )
        # Total weight of what was taken in, below 1; an update counts ``1 - decay``.
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64, device=device), requires_grad=False)

    def take_in(self, news: list[Tensor] | tuple[Tensor, ...], scale: float = 1.0) -> None:
        """Add ``scale`` times new values, one for each site in order."""
        sums = [self.sums[key] for key in self._keys]
        torch._foreach_mul_(sums, self.decay)
        torch._foreach_add_(sums, news, alpha=(1 - self.decay) * scale)
        self.weight.mul_(self.decay).add_(1 - self.decay)

    def of(self, site: WeightSite) -> Tensor:
        """The average of a site."""
        total = self.sums[site.key]
        return total / self.weight.clamp_min(1 - self.decay).to(total.dtype)


class Estimator(Described, nn.Module):
    """Estimates, from passes of training, the curvature of the log-likelihood and what keeping each weight gains.

    Subclasses implement `update` or `prepare`, `curvature`, and `pull` unless the second-order one suits.

    Args:
        model: whose weights are followed.
        decay: of the exponential averages, a batch.
    """

    def __init__(self, model: IsingViT, decay: float = 0.98) -> None:
        super().__init__()
        self.sites, self.decay, self._device = list(model.sites), decay, model.prior.zero.device

    def average(self, sites: Sequence[WeightSite] | None = None) -> Average:
        """An exponential average over some sites, all if None."""
        return Average(self.sites if sites is None else sites, self.decay, self._device)

    def watch(self, weights: Mapping[str, Tensor]) -> Linear | None:
        """Before the network's forward pass in training, with the weights as they enter it: what is to apply its linear
        layers; None for the usual."""
        return None

    def update(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        """After each step of training; ``grad`` of ``seen.weights`` is the gradient of the loss, in nats."""

    def prepare(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        """Before each update of the masks."""

    def curvature(self, site: WeightSite) -> Tensor:
        """F, the curvature of the negative log-likelihood of all data in each weight, shape ``site.shape``."""
        raise NotImplementedError(f"{type(self).__name__} must implement curvature(site)")

    def pull(self, site: WeightSite, slab: Distribution) -> Tensor:
        """``L+ - L-`` in nats: the gain in log-likelihood of all data from keeping each weight, shape ``site.shape``.

        To second order, ``(mean ** 2 - variance) * F / 2``.

        Args:
            site: whose weights.
            slab: distribution of each weight where it is kept.
        """
        return 0.5 * (slab.mean.square() - slab.variance) * self.curvature(site)


def gradients(seen: Pass, sites: Sequence[WeightSite]) -> list[Tensor]:
    """Gradients of the loss in the weights as they entered the network, after the backward pass."""
    found: list[Any] = [seen.weights[site.name].grad for site in sites]
    return found


def of_all_data(seen: Pass) -> float:
    """Factor from a squared gradient of the loss, which is N / T times the mean loss of a batch of B images, to
    N * B times the squared gradient of that mean."""
    return seen.temperature**2 * len(seen.images) / seen.num_data
