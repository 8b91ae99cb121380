"""A training step as torch runs it, operation by operation."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which the loss is computed."""


def eager_step(
    loss: Callable[..., Tensor],
    autocast: Autocast,
    images: Tensor,
    labels: Tensor,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> Tensor:
    """Compute the loss of a batch, a scalar in nats, and leave the gradients in ``grad`` of the parameters."""
    with autocast():
        value = loss(images, labels)
    backward(value)
    return value.detach()
