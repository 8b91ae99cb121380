"""Precision of training: where products are in half precision, and the scale of the loss that float16 needs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..guides import Guide
from .config import FitConfig
from .traced import Autocast

LOSS_SCALE = 1024.0
"""In float16 the backward pass is of this many times the loss per image, whose gradients are within its range."""


def autocast_of(config: FitConfig, device: torch.device) -> Autocast:
    """Makes the context in which products are computed in the precision of a configuration."""
    precision = getattr(torch, config.precision)
    return partial(torch.autocast, device.type, precision, enabled=precision != torch.float32)


def backward_of(config: FitConfig, guide: Guide, backward: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """The backward pass of a loss in nats of all data, which exceeds the range of float16.

    In float16, the loss is scaled to `LOSS_SCALE` times that of an image, and the gradients of parameters and of the
    weights that the guide sees are scaled back. Elsewhere it is ``backward`` itself.

    Args:
        config: the configuration.
        guide: the guide; of its model the temperature and the number of images are read at each call.
        backward: computes the gradients of a loss.

    Raises:
        InputError: at the first call in float16, if the guide reads the backward pass itself.
    """
    if config.precision != "float16":
        return backward
    model: Any = guide.model
    checked = False

    def scaled(loss: Tensor) -> None:
        nonlocal checked
        if not checked and guide.seen is not None and guide.see(guide.seen) is not None:
            raise InputError(
                "precision='float16': the guide's estimator reads the backward pass, which is scaled there; "
                "use estimator='squared_gradient', or precision='bfloat16'"
            )
        checked = True
        scale = LOSS_SCALE * model.temperature / model.num_data
        backward(loss * scale)
        weights = [] if guide.seen is None else list(guide.seen.weights.values())
        tensors = [*guide.parameters(), *model.parameters(), *weights]
        gradients = {tensor.grad.data_ptr(): tensor.grad for tensor in tensors if tensor.grad is not None}
        torch._foreach_div_(list(gradients.values()), scale)

    return scaled
