"""The processes that train one network together, one for each device."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, TrainingError, check_count

Value = TypeVar("Value")

MOST_DEVICES = 4096
"""Number of devices that is taken for meant."""

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others; one that has ended is noticed at once."""

LOST = ("closed by peer", "Connection reset", "Socket closed", "NCCL", "Timed out", "Broken pipe", "Connection refused")
"""What torch says if another process of a group is gone."""


class Ranks:
    """One process alone; `Group` has several, by the same methods.

    Args:
        device: the device on which this process trains.

    Attributes:
        rank, size: number of this process, from 0, and of all.
    """

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and tells listeners."""
        return self.rank == 0

    def wrap(self, loss: nn.Module) -> nn.Module:
        """A module with the same loss, whose gradients are the means over all processes."""
        return loss

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss."""
        loss.backward()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in the place of tensors, the same bits in each process."""

    def same(self, value: Value) -> Value:
        """The value that the first process has."""
        return value

    def most(self, number: int) -> int:
        """The largest of the numbers of all processes."""
        return number


class Group(Ranks):
    """Several processes, connected by Lightning Fabric.

    Args:
        fabric: the launched `Fabric` of this process.
    """

    def __init__(self, fabric: Any) -> None:
        super().__init__(fabric.device)
        self.fabric, self.rank, self.size = fabric, fabric.global_rank, fabric.world_size

    def wrap(self, loss: nn.Module) -> nn.Module:
        wrapped: nn.Module = self.fabric.setup_module(loss, move_to_device=False)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def same(self, value: Value) -> Value:
        found: Value = self.fabric.broadcast(value)
        return found

    def most(self, number: int) -> int:
        found = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)


def seed_of(ranks: Ranks, seed: int, step: int = 0) -> int:
    """Seed of a process's own random numbers, from a step of a fit with a seed on; that of the first is its own."""
    return (seed + 7_919_000_003 * ranks.rank + 104_729 * step) % 2**63


def launched() -> bool:
    """Whether a launcher, such as torchrun or a cluster's, has started this process as one of several."""
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return True
    try:
        from lightning_fabric.plugins import environments
    except ImportError:
        return False
    known = (environments.SLURMEnvironment, environments.LSFEnvironment, environments.MPIEnvironment)
    return any(each.detect() and each().world_size() > 1 for each in known)


def connect(device: torch.device, devices: int, strategy: Any = "ddp") -> Ranks:
    """The processes of a fit: this one alone, or all that a launcher has started with it.

    Args:
        device: kind of the devices; of one process alone, its device.
        devices: number of processes, and devices, of each machine.
        strategy: ``"ddp"``, or a `DDPStrategy` of Lightning Fabric.

    Raises:
        InputError: if Lightning Fabric is not installed, the strategy shards the network, or the launcher has started
            another number of processes.
    """
    if devices == 1:
        return Ranks(device)
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError:
        raise InputError(f"devices={devices}: needs Lightning Fabric; pip install 'pyro-isingvit[devices]'") from None
    chosen = DDPStrategy(find_unused_parameters=True, timeout=PATIENCE)
    if strategy != "ddp":
        chosen = strategy
    every = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", devices)))
    if every % devices:
        raise InputError(f"devices={devices}: the launcher has started {every} processes; give those of one machine")
    try:
        fabric = Fabric(accelerator=device.type, devices=devices, num_nodes=every // devices, strategy=chosen)
    except (RuntimeError, ValueError) as error:  # too few devices
        raise InputError(f"devices={devices}: {' '.join(str(error).split())[:200]}") from None
    fabric.launch()
    return Group(fabric)


def check_devices(devices: object, strategy: object) -> None:
    """Check the arguments of a fit on several devices.

    Raises:
        InputError: if ``devices`` is no positive integer, or the strategy is another than data-parallel.
    """
    check_count("devices", devices, MOST_DEVICES)
    if strategy != "ddp" and type(strategy).__name__ != "DDPStrategy":
        raise InputError(
            f"strategy={strategy!r}: masks and weights of the whole network are drawn on each device, so that it has "
            "to fit there; give 'ddp' or a DDPStrategy"
        )


def check_share(batch_size: int, ranks: int) -> None:
    """Check that a batch can be shared among processes.

    Raises:
        InputError: if it cannot.
    """
    if batch_size % ranks:
        raise InputError(
            f"batch_size={batch_size}: images of a step over all devices together, and there are {ranks}; give a "
            f"multiple, e.g. {-(-batch_size // ranks) * ranks}"
        )


@contextmanager
def watched(ranks: Ranks) -> Iterator[None]:
    """Context in which the end of another process is an error that says so.

    Raises:
        TrainingError: if another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.size > 1 and not isinstance(error, TrainingError) and any(part in str(error) for part in LOST):
            said = " ".join(str(error).split())[:160]
            raise TrainingError(
                f"process {ranks.rank} of {ranks.size}: another process of this fit has ended ({said}); go on from the "
                "last checkpoint, with resume=True and as many devices as there are"
            ) from None
        raise
