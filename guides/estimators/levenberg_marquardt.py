"""Curvature from squared back-propagated signals times squared inputs, as in the published method.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
    LeCun, Bottou, Orr & Muller, "Efficient BackProp", 1998, section 9.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import Linear

from .base import of_all_data
from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class LevenbergMarquardt(SquaredGradient):
    r"""Curvature from squared back-propagated signals times squared inputs, as in the published method.

    For a weight from input j to unit i, :math:`F_{ij} = N\,\mathrm{E}[\sum_t \delta_{ti}^2 x_{tj}^2]` over
    images and their tokens t: the Gauss-Newton diagonal without terms between tokens. It is collected in the
    ordinary backward pass, by a `Linear` of its own.

    Raises:
        InputError: in training, if the network does not apply every site with its ``linear`` argument.
    """

    def __init__(self, model: IsingViT, decay: float = 0.98) -> None:
        super().__init__(model, decay)
        self._caught: dict[str, Tensor] = {}
        self._met: set[str] = set()

    def watch(self, weights: Mapping[str, Tensor]) -> Linear | None:
        self._caught = {name: torch.zeros_like(weight) for name, weight in weights.items()}

        def linear(site: str, layer: int | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            self._met.add(site)
            caught = self._caught[site] if layer is None else self._caught[site][layer]
            return _CatchingLinear.apply(x, weight, bias, caught.view(weight.shape))

        return linear

    def update(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        unmet = [site.name for site in self.sites if site.name not in self._met]
        if unmet:
            raise InputError(f"levenberg_marquardt: the network does not apply {unmet} by linear=; use another")
        caught = [self._caught[site.name] for site in self.sites]
        self.squares.take_in(caught, of_all_data(seen))


class _CatchingLinear(torch.autograd.Function):
    """`linear` whose backward pass adds squared signals times squared inputs to ``into``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.into = bias is not None, into
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        signal, x = signal.to(weight.dtype), x.to(weight.dtype)  # both may be in lower precision under autocast
        rows, inputs = signal.flatten(0, -2), x.flatten(0, -2)
        ctx.into.add_(rows.square().mT @ inputs.square())
        return signal @ weight, rows.mT @ inputs, rows.sum(0) if ctx.biased else None, None
