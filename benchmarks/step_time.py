"""Compare the time of an Ising step with that of the deterministic step.

Both are whole training steps of the same ViT on random images: forward, backward, clipping, Adam, and for the Ising
network the update of masks and scales. The Ising step is also timed in bfloat16. The methods take turns, so that other
work on the machine slows all of them. Each figure is the median over the rounds; ratios are taken within a round.

    python benchmarks/step_time.py --threads 1
    python benchmarks/step_time.py --threads 1 --geometry cifar --batches 50 --rounds 10 --steps 10
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import pyro
import torch
from torch import nn

from pyro_isingvit import (
    Guide,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    TraceGraph_ELBO,
    ViT,
    ViTConfig,
)
from pyro_isingvit.guides import PointEstimate
from pyro_isingvit.models.priors import Flat

IMAGES = 300

GEOMETRIES = {
    "mnist": ViTConfig(),
    "cifar": ViTConfig(image_size=32, channels=3, patch_size=4, dim=64, heads=8),
}
"""The smaller networks of the published study's repository."""


def plain_step(config: ViTConfig, batch: int) -> Callable[[], None]:
    """A step of the deterministic ViT in plain torch."""
    network = ViT(config)
    images, labels = random_batch(config, batch)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)

    def step() -> None:
        nn.functional.cross_entropy(network(images), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def pyro_step(model: IsingViT, guide: Guide, batch: int, precision: torch.dtype = torch.float32) -> Callable[[], None]:
    """A training step of a model and guide, as in `fit`."""
    model.num_data, model.temperature = IMAGES, 1e-4
    images, labels = random_batch(model.network.config, batch)
    loss = TraceGraph_ELBO()(model, guide)
    parameters = [p for module in (model, guide) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            value = loss(images, labels)
        value.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = model.temperature / IMAGES * nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, model.temperature / IMAGES * (1.0 / (norm + 1e-6)).clamp_max(1.0))
        optimizer.step()
        optimizer.zero_grad()
        guide.learn()

    return step


def ising_step(config: ViTConfig, batch: int, precision: torch.dtype = torch.float32) -> Callable[[], None]:
    """A step of the Ising phase."""
    network = ViT(config)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites()))
    return pyro_step(model, LikelihoodGuided(model), batch, precision)


def flat_step(config: ViTConfig, batch: int) -> Callable[[], None]:
    """A step of the deterministic network as a Pyro program."""
    network = ViT(config)
    model = IsingViT(network, Flat(network.weight_sites()))
    return pyro_step(model, PointEstimate(model), batch)


def random_batch(config: ViTConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and labels."""
    return torch.rand(batch, config.channels, *config.image_size), torch.randint(config.classes, (batch,))


METHODS = {
    "plain torch": plain_step,
    "deterministic, as a Pyro program": flat_step,
    "Ising": ising_step,
    "Ising, bfloat16": partial(ising_step, precision=torch.bfloat16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mnist")
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 64, 128])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="steps per round; the masks are updated every ten steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'batch':>5}  {'method':33} {'ms a step':>9}  {'ratio':>5}")
    for batch in options.batches:
        with pyro.validation_enabled(False):
            methods = {name: make(GEOMETRIES[options.geometry], batch) for name, make in METHODS.items()}
            for step in methods.values():
                for _ in range(10):
                    step()
            times: dict[str, list[float]] = {name: [] for name in methods}
            for _ in range(options.rounds):
                for name, step in methods.items():
                    start = time.perf_counter()
                    for _ in range(options.steps):
                        step()
                    times[name].append((time.perf_counter() - start) / options.steps * 1e3)
        for name, each in times.items():
            ratio = statistics.median(a / b for a, b in zip(each, times["plain torch"], strict=True))
            print(f"{batch:5}  {name:33} {statistics.median(each):9.1f}  {ratio:5.2f}")


if __name__ == "__main__":
    main()
