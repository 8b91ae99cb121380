r"""Estimators of the likelihood's pull on a mask, :math:`L_+ - L_-`.

What the log-likelihood loses when a weight is dropped is, to second order about a stationary point,
half the weight squared times the curvature (Optimal Brain Damage). The first-order term vanishes there,
and its noise would drown the second.

References:
    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .sites import WeightSite


class SquaredGradient(nn.Module):
    r"""Curvature of the tempered log-likelihood of all data, from squared minibatch gradients.

    With :math:`\bar g` the gradient of the mean log-likelihood of a batch of ``B`` out of ``N`` images,
    :math:`F = N B\, \mathrm{E}[\bar g^2]` is the diagonal of the empirical Fisher information where the
    mean gradient is zero. It is kept as an exponential average, with the start corrected for, so that it
    costs no extra pass.

    Args:
        sites: whose weights are followed.
        decay: of the average, a batch.
    """

    def __init__(self, sites: Sequence[WeightSite], decay: float = 0.98) -> None:
        super().__init__()
        self.sites, self.decay = list(sites), decay
        self.average = nn.ParameterDict(
            {site.key: nn.Parameter(torch.zeros(site.shape), requires_grad=False) for site in sites}
        )
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    weight: Tensor
    """Total weight of the gradients in the average, below 1; a batch counts ``1 - decay``."""

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], batch_size: int, num_data: int, temperature: float) -> None:
        """Take in one batch.

        Args:
            weights: by site name; ``grad`` of each is that of the tempered log-likelihood, scaled to all data.
            batch_size: images in the batch.
            num_data: images in all.
            temperature: of the likelihood.
        """
        averages = [self.average[site.key] for site in self.sites]
        gradients = [weights[site.name].grad for site in self.sites]
        # That gradient is N / T times the mean gradient, so N * B * mean ** 2 is its square times this:
        share = (1 - self.decay) * temperature**2 * batch_size / num_data
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_addcmul_(averages, gradients, gradients, value=share)
        self.weight.mul_(self.decay).add_(1 - self.decay)

    def curvature(self, site: WeightSite) -> Tensor:
        """F, the untempered curvature of the log-likelihood of all data in each weight, shape ``site.shape``."""
        return self.average[site.key] / self.weight.clamp_min(1 - self.decay).to(self.average[site.key].dtype)
