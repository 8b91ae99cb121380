"""The batches of training."""

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from .streams import Labelled, Stream


class Batches:
    """Endless batches of labelled images, all of one size: one permutation per epoch, without a last incomplete batch.

    The order depends on the seed alone. Each of several processes has its part of every batch.

    Args:
        source: the images; those in memory on the device already.
        size: images of a batch, over all processes; a multiple of their number.
        seed: seed of the order.
        device: device of the batches.
        rank, ranks: number of this process, from 0, and of all.

    Attributes:
        taken: number of batches taken so far; it may be set, to go on from there.
    """

    def __init__(
        self, source: Labelled, size: int, seed: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> None:
        self.source, self.seed, self.device, self.rank = source, seed, device, rank
        self.own = min(size, len(source)) // ranks
        self.size, self._taken = self.own * ranks, 0
        self._ahead = self._from(0)

    @property
    def taken(self) -> int:
        return self._taken

    @taken.setter
    def taken(self, value: int) -> None:
        self._taken, self._ahead = value, self._from(value)

    def __next__(self) -> tuple[Tensor, Tensor]:
        images, labels = next(self._ahead)
        self._taken += 1
        return images, labels

    def _from(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        source, device = self.source, self.device
        if isinstance(source, Stream):
            quick = device.type == "cuda"
            for images, labels in source.batches(self._order(start), self.seed):
                yield images.to(device, non_blocking=quick), labels.to(device, non_blocking=quick)
        else:
            for chosen in self._order(start):
                there = chosen.to(device)
                yield source.images[there], source.labels[there]

    def _order(self, start: int) -> Iterator[Tensor]:
        """The indices of this process's part of each batch, from the batch of this number on."""
        each, order = max(1, len(self.source) // self.size), torch.empty(0)
        for number in count(start):
            epoch, place = divmod(number, each)
            if place == 0 or number == start:
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                order = torch.randperm(len(self.source), generator=generator)
            first = place * self.size + self.rank * self.own
            yield order[first : first + self.own]
