"""The gain from keeping each weight of the last layer, from paired draws; squared gradients for the other layers.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.models.likelihoods import require_classes
from pyro_isingvit.network import WeightSite

from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class PairedDraws(SquaredGradient):
    """Mean difference of the log-likelihood between each weight of the last layer kept and dropped, over draws.

    Both members of a pair share all other masks and weights (common random numbers). For the other layers this is
    `SquaredGradient`.

    Args:
        model, decay: see `Estimator`; the last site has to be a linear layer to the logits. For the paired draws, the
            decay is per update of the masks.
        draws: number of pairs for each weight at each update of the masks.

    Raises:
        InputError: in training, if the last site is not one linear layer to the logits.
    """

    def __init__(self, model: IsingViT, decay: float = 0.98, draws: int = 128) -> None:
        super().__init__(model, decay)
        self.draws, self.last = draws, self.sites[-1]
        self.pairs = self.average([self.last])

    def prepare(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        require_classes(guide.model.likelihood, "estimator='paired_draws'", "; use 'squared_gradient'")
        model, name, scale = guide.model, self.last.name, seen.num_data / len(seen.images)
        assert seen.labels is not None
        total = torch.zeros(self.last.shape, device=seen.images.device)
        for _ in range(self.draws):
            masks, slabs = guide.sample_parts()
            weights = {n: slab * masks.get(n, 1.0) for n, slab in slabs.items()}
            inputs: list[Tensor] = []

            def linear(
                site: str, layer: int | None, x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Any = inputs
            ) -> Tensor:
                if site == self.last.name:
                    inputs.append(x)
                return F.linear(x, weight, bias)

            logits = model.logits(seen.images, weights, linear)
            if len(inputs) != 1:
                raise InputError(f"paired_draws: the last site, {name!r}, is not one linear layer to the logits")
            total += keep_minus_drop(logits, inputs[0], slabs[name], weights[name], seen.labels)
        self.pairs.take_in([total / self.draws], scale)

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        if site.name == self.last.name:
            return self.pairs.of(site)
        return super().pull(site, slab, slope)


def keep_minus_drop(logits: Tensor, inputs: Tensor, kept: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of a batch with each weight of the last layer kept, minus that with the weight dropped.

    Args:
        logits: (n, classes), computed with ``weight``.
        inputs: (n, units), the inputs of the last layer.
        kept: (classes, units), the value of each weight if it is kept.
        weight: (classes, units), its value in this draw: ``kept`` or 0.
        labels: (n,).

    Returns:
        The difference in nats, summed over the batch, (classes, units).
    """
    classes = logits.shape[-1]
    own = F.one_hot(labels, classes).bool().unsqueeze(-1)
    others = (
        logits.unsqueeze(1)
        .expand(-1, classes, -1)
        .masked_fill(torch.eye(classes, dtype=torch.bool, device=logits.device), -torch.inf)
    )
    rest = others.logsumexp(-1, keepdim=True)  # over all other classes
    target = logits.gather(-1, labels.unsqueeze(-1)).unsqueeze(-1)

    def log_likelihood(value: Tensor) -> Tensor:
        changed = logits.unsqueeze(-1) + (value - weight) * inputs.unsqueeze(1)
        return torch.where(own, changed, target) - torch.logaddexp(rest, changed)

    return (log_likelihood(kept) - log_likelihood(torch.zeros_like(kept))).sum(0)
