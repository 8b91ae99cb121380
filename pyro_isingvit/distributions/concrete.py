"""A Bernoulli distribution that draws exact zeros and ones, with the gradient of the concrete relaxation.

References:
    Maddison, Mnih & Teh, "The Concrete Distribution", ICLR 2017. Jang, Gu & Poole, "Categorical
    Reparameterization with Gumbel-Softmax", ICLR 2017 (straight-through variant).
"""

from typing import Any

import torch
from torch import Tensor

from .straight_through import StraightThroughBernoulli


class StraightThroughConcrete(StraightThroughBernoulli):
    r"""`StraightThroughBernoulli` whose draws have the gradient of a concrete relaxation.

    The gradient of a draw is that of :math:`\sigma((\mathrm{logit} + \epsilon)/t)`, where :math:`\epsilon` is logistic
    noise and :math:`t` the relaxation temperature. Draws and ``log_prob`` are those of a Bernoulli distribution, so the
    value of the ELBO is exact; only the gradient of draws differs.

    Args:
        temperature: relaxation temperature t > 0, unrelated to the temperature of the posterior. A small value gives
            gradients with less bias and more variance.
        args, options: see `StraightThroughBernoulli`.

    Raises:
        ValueError: if the relaxation temperature is not positive.
    """

    def __init__(self, *args: Any, temperature: float = 0.5, **options: Any) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive, e.g. 0.5")
        super().__init__(*args, **options)
        self.temperature = temperature

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape, tiny = self._extended_shape(sample_shape), torch.finfo(self._logits.dtype).eps
        uniform = torch.rand(shape, dtype=self._logits.dtype, device=self._logits.device).clamp(tiny, 1 - tiny)
        noisy = self._logits + uniform.logit()
        draw = (noisy > 0).to(noisy.dtype)
        if not self._logits.requires_grad:
            return draw
        soft = (noisy / self.temperature).sigmoid()
        return draw + (soft - soft.detach())
