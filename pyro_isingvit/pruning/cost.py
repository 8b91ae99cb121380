"""Size and speed of networks: parameters, operations, bytes and latency."""

from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..draws import evaluating

ROUNDS, ROUND_SECONDS = 5, 0.2
"""A latency is the least of the medians of so many rounds, of so many seconds. The networks take turns."""


@dataclass(frozen=True)
class Cost:
    """Size and speed of a network.

    Attributes:
        parameters: number of learned parameters.
        zeros: share of the parameters that are 0. Zeros take as much memory and time as other numbers.
        bytes: size of its safetensors file.
        flops: floating-point operations of the matrix products for one image.
        latency: seconds for a batch, by batch size.
    """

    parameters: int
    zeros: float
    bytes: int
    flops: int
    latency: Mapping[int, float]


def costs(networks: Mapping[str, nn.Module], images: Tensor, batches: tuple[int, ...] = (1, 256)) -> dict[str, Cost]:
    """Measure networks side by side, on their device and with as many threads as torch uses.

    Args:
        networks: the networks by name; all take the same images.
        images: one or more images (n, channels, height, width), repeated to fill a batch.
        batches: batch sizes to time.
    """
    from torch.utils.benchmark import Timer  # warns at import if a CUDA toolkit but no GPU is installed

    latency: dict[str, dict[int, float]] = {name: {} for name in networks}
    threads, device = torch.get_num_threads(), next(next(iter(networks.values())).parameters()).device
    with evaluating(*networks.values()):
        for size in batches:
            batch = images[torch.arange(size) % len(images)].to(device)
            for _ in range(ROUNDS):
                for name, network in networks.items():
                    timer = Timer("network(batch)", globals={"network": network, "batch": batch}, num_threads=threads)
                    took = timer.blocked_autorange(min_run_time=ROUND_SECONDS).median
                    latency[name][size] = min(took, latency[name].get(size, took))
        return {
            name: Cost(
                sum(p.numel() for p in network.parameters()),
                _zeros(network),
                len(safetensors.torch.save(network.state_dict())),
                _flops(network, images[:1].to(device)),
                latency[name],
            )
            for name, network in networks.items()
        }


def _zeros(network: nn.Module) -> float:
    counts = [(int((p == 0).sum()), p.numel()) for p in network.parameters()]
    return sum(zero for zero, _ in counts) / sum(number for _, number in counts)


def _flops(network: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops())
