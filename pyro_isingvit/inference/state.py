"""The state of training that can be put back, and the order of its batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """A state of training: states of model, guide and optimiser, and counters and rows of the `Trainer`."""

    states: Sequence[dict[str, Any]]
    step: int
    position: float
    stride: float
    rows: Sequence[dict[str, Any]]


class Batches:
    """Endless minibatches of indices, all of one size: one permutation per epoch, without a last incomplete batch."""

    def __init__(self, total: int, size: int, device: torch.device) -> None:
        self.total, self.size = total, min(size, total)
        self.order, self.place = torch.empty(0, dtype=torch.long, device=device), 0

    def __next__(self) -> Tensor:
        if self.place + self.size > len(self.order):
            self.order, self.place = torch.randperm(self.total, device=self.order.device), 0
        self.place += self.size
        return self.order[self.place - self.size : self.place]
