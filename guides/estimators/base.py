"""The base class of estimators of ``L+ - L-``, the gain in log-likelihood from keeping a weight."""

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
    """Exponential averages of one tensor for each of some sites, corrected for their start at zero.

    Args:
        sites: the sites whose shapes the tensors have.
        decay: decay of the averages per update.
        device: device of the averages.
    """

    def __init__(self, sites: Sequence[WeightSite], decay: float, device: torch.device) -> None:
        super().__init__()
        self.decay, self._keys = decay, [site.key for site in sites]
        self.sums = nn.ParameterDict(
            {s.key: nn.Parameter(torch.zeros(s.shape, device=device), requires_grad=False) for s in sites}
        )
        # Total weight of all updates so far, below 1; the last one counts ``1 - decay``.
        self.weight = nn.Parameter(torch.zeros((), device=device), requires_grad=False)

    def take_in(self, news: list[Tensor] | tuple[Tensor, ...], scale: float = 1.0) -> None:
        """Update the averages by ``scale`` times new values, one tensor for each site, in order."""
        torch._foreach_add_(self._decayed(), news, alpha=(1 - self.decay) * scale)

    def take_in_squares(self, news: list[Tensor] | tuple[Tensor, ...], scale: float = 1.0) -> None:
        """The same as `take_in` of the squares of new values."""
        torch._foreach_addcmul_(self._decayed(), news, news, value=(1 - self.decay) * scale)

    def of(self, site: WeightSite) -> Tensor:
        """The average of a site, shape ``site.shape``."""
        total = self.sums[site.key]
        return total / self.weight.clamp_min(1 - self.decay)

    def _decayed(self) -> list[Tensor]:
        sums = [self.sums[key] for key in self._keys]
        torch._foreach_mul_(sums, self.decay)
        self.weight.mul_(self.decay).add_(1 - self.decay)
        return sums


class Estimator(Described, nn.Module):
    """Estimates the curvature of the log-likelihood and the gain from keeping each weight, from passes of training.

    Subclasses implement `update` or `prepare`, and `curvature`; they override `pull` to replace its second-order form.

    Args:
        model: the model whose weights are scored.
        decay: decay of the exponential averages per batch.
    """

    counters: tuple[str, ...] = ()
    """See `Guide.counters`."""

    def __init__(self, model: IsingViT, decay: float = 0.98) -> None:
        super().__init__()
        self.sites, self.decay, self._device = list(model.sites), decay, model.prior.zero.device

    def average(self, sites: Sequence[WeightSite] | None = None) -> Average:
        """An `Average` over some sites, or over all if None."""
        return Average(self.sites if sites is None else sites, self.decay, self._device)

    def averages(self) -> list[Tensor]:
        """All tensors that are averaged over batches, see `average`."""
        return [each for part in self.modules() if isinstance(part, Average) for each in part.sums.values()]

    def watch(self, weights: Mapping[str, Tensor]) -> Linear | None:
        """Called before each forward pass in training with the weights that enter the network, by site name.

        Returns:
            The function that applies the network's linear layers, see `pyro_isingvit.network.Linear`; None for the
            default.
        """
        return None

    def update(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        """Called after each step of training; ``grad`` of ``seen.weights`` is the gradient of the loss, in nats."""

    def prepare(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        """Called before each update of the masks."""

    def curvature(self, site: WeightSite) -> Tensor:
        """F, the curvature of the negative log-likelihood of all data in each weight, shape ``site.shape``."""
        raise NotImplementedError(f"{type(self).__name__} must implement curvature(site)")

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        """``L+ - L-`` in nats: the gain in log-likelihood of all data from keeping each weight, shape ``site.shape``.

        To second order, ``mean * slope + (mean ** 2 - variance) * F / 2``. The slope is not estimated from gradients,
        whose noise would be a hundred times the second-order term: where the posterior of the weight is stationary,
        it balances that of the prior, see `LikelihoodGuided.evidence`.

        Args:
            site: site of the weights.
            slab: distribution of each weight if it is kept, batch shape ``site.shape``.
            slope: derivative of the log-likelihood at the mean of each weight, in nats; broadcasts to ``site.shape``.
        """
        return slab.mean * slope + 0.5 * (slab.mean.square() - slab.variance) * self.curvature(site)


def gradients(seen: Pass, sites: Sequence[WeightSite]) -> list[Tensor]:
    """Gradients of the loss in the weights as they entered the network; available after the backward pass."""
    found: list[Any] = [seen.weights[site.name].grad for site in sites]
    return found


def of_all_data(seen: Pass) -> float:
    """Factor from a squared gradient of the loss to a curvature of the log-likelihood of all data.

    The loss is N / T times the mean loss of a batch of B images; the curvature is N * B times the squared gradient of
    that mean.
    """
    return seen.temperature**2 * len(seen.images) / seen.num_data
