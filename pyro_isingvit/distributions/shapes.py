"""Fast helpers for shapes; every training step builds dozens of distributions."""

import torch
from torch import Tensor


def common_shape(*shapes: torch.Size) -> torch.Size:
    """`torch.broadcast_shapes` with a fast path for equal shapes and scalars, the usual case, some ten times faster."""
    different = {shape for shape in shapes if shape}
    if len(different) <= 1:
        return different.pop() if different else torch.Size()
    return torch.Size(torch.broadcast_shapes(*different))


def sum_event(elements: Tensor, batch_shape: torch.Size, event_shape: torch.Size) -> Tensor:
    """Sum elements over the event dimensions, after broadcasting them to the batch and event shape if needed."""
    full = batch_shape + event_shape
    if elements.shape[elements.dim() - len(full) :] != full or elements.dim() < len(full):
        elements = elements.expand(torch.broadcast_shapes(elements.shape, full))
    return elements.flatten(elements.dim() - len(event_shape)).sum(-1) if event_shape else elements
