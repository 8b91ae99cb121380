"""Bernoulli masks with the score-function gradient, and baselines that reduce its variance.

References:
    Mnih & Gregor, "Neural Variational Inference and Learning in Belief Networks", ICML 2014.
    Schulman, Heess, Weber & Abbeel, "Gradient Estimation Using Stochastic Computation Graphs", NeurIPS 2015.
"""

from typing import Any, Literal

import torch
from pyro.distributions import Bernoulli
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.network import WeightSite

from .mean_field import MeanField

BASELINE_DECAY = 0.9
"""Decay of the average downstream cost of each mask."""

BASELINE_HIDDEN = 16
"""Hidden units of the neural baseline."""


class ScoreFunction(MeanField):
    """`MeanField` with the unbiased score-function gradient of `TraceGraph_ELBO` in place of the straight-through one.

    Masks and weights are sampled in plates, so that the prior and entropy terms of a mask affect the gradient of that
    mask alone. The likelihood affects the gradients of all masks, and their variance grows with the number of masks, so
    this guide is for small networks.

    Args:
        model: the model whose posterior this approximates, with one mask for each weight.
        baseline: what is subtracted from the cost: nothing (``"none"``), its ``"decaying_average"``, or a learned
            function of the mean image of the batch plus a learned offset for each mask (``"neural"``).
        options: arguments of `MeanField`.

    Raises:
        InputError: if a value is out of range, the baseline is unknown, or several weights share a mask.
    """

    plated = True
    independent_masks = True

    def __init__(
        self,
        model: IsingViT,
        baseline: Literal["none", "decaying_average", "neural"] = "decaying_average",
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if baseline not in ("none", "decaying_average", "neural"):
            raise InputError(f"baseline={baseline!r}: choose 'none', 'decaying_average' or 'neural'")
        masked = [site for site in model.sites if site.name in self.mask_shapes]
        shared = [site.name for site in masked if self.mask_shapes[site.name] != site.shape]
        if shared:
            raise InputError(
                f"prior={type(model.prior).__name__}: one mask for several weights at {shared}; use MeanField"
            )
        self.baseline = baseline
        self.offset = nn.ParameterDict(
            {
                s.key: nn.Parameter(
                    torch.zeros(s.shape, device=model.prior.zero.device), requires_grad=baseline == "neural"
                )
                for s in masked
            }
            if baseline != "none"
            else {}
        )
        self.net = (
            nn.Sequential(nn.LazyLinear(BASELINE_HIDDEN), nn.Tanh(), nn.Linear(BASELINE_HIDDEN, 1))
            if baseline == "neural"
            else None
        )
        self._context: Tensor | None = None

    def mask(self, site: WeightSite) -> TorchDistributionMixin:
        logit = self.logit[site.key]
        return Bernoulli(logits=logit).to_event(logit.dim())

    def forward(self, images: Tensor | None = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        self._context = None if images is None else images.detach().flatten(1).mean(0)
        first = None if self.net is None else self.net[0]
        if isinstance(first, nn.LazyLinear) and self._context is not None:
            with torch.random.fork_rng(), torch.no_grad():  # initial weights do not depend on earlier draws
                torch.manual_seed(0)
                first(self._context)
        return super().forward(images, *args, **kwargs)

    def draw_masks(self) -> dict[str, Tensor]:
        return {
            site.name: self.model.sample(site, site.mask_name, self.mask(site), baseline=self._baseline(site))
            for site in self.model.sites
            if site.name in self.mask_shapes
        }

    def _baseline(self, site: WeightSite) -> dict[str, Any]:
        """Options of Pyro's baseline. The averages are kept in this module, not in the global store."""
        if self.baseline == "none" or not self.training or not torch.is_grad_enabled():
            return {}
        offset = self.offset[site.key]
        shape = _without_leading_ones(offset.shape)  # as Pyro sums the costs of a mask
        if self.baseline == "decaying_average":
            # The gradient of Pyro's squared error in the baseline is -2 * (cost - baseline).
            step, value = -0.5 * (1 - BASELINE_DECAY), offset.detach().clone().requires_grad_()
            value.register_hook(lambda gradient: offset.data.add_(gradient, alpha=step))
            return {"baseline_value": value.view(shape)}
        # The network returns values of order one; the baseline is in nats of all data, and so of order ``unit``. The
        # division by ``unit`` gives the gradient of the squared error the order of the gradient of the loss.
        unit = (self.model.num_data or 1) / self.model.temperature
        value = offset + self.net(self._context) if self.net is not None and self._context is not None else offset
        value.register_hook(lambda gradient: gradient / unit)
        return {"baseline_value": unit * value.view(shape)}


def _without_leading_ones(shape: torch.Size) -> torch.Size:
    first = next((i for i, size in enumerate(shape) if size > 1), len(shape))
    return shape[first:]
