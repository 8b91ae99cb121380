"""Time of an Ising step and of the deterministic step, side by side in one run.

Both are whole training steps (forward, backward, clipping, Adam, and for the Ising network the refresh of
masks and scales) of the same ViT in the MNIST geometry on random images. The two take turns, so that a
busy machine slows both; each figure is the median over the rounds, the ratio taken within a round.

    python benchmarks/step_time.py --threads 1
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from torch import nn

from pyro_isingvit import (
    Flat,
    Guide,
    IsingSpikeSlab,
    IsingViT,
    LikelihoodGuided,
    PointEstimate,
    TraceGraph_ELBO,
    ViT,
    ViTConfig,
)

IMAGES = 300


def plain_step(batch: int) -> Callable[[], None]:
    """A step of the deterministic ViT in plain torch."""
    network = ViT(ViTConfig())
    images, labels = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)

    def step() -> None:
        nn.functional.cross_entropy(network(images), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def pyro_step(model: IsingViT, guide: Guide, batch: int) -> Callable[[], None]:
    """A step of a model and guide as `fit` takes it."""
    model.num_data, model.temperature = IMAGES, 1e-4
    images, labels = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    loss = TraceGraph_ELBO()(model, guide)
    parameters = [p for module in (model, guide) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)

    def step() -> None:
        loss(images, labels).backward()
        torch._foreach_mul_([p.grad for p in parameters], model.temperature / IMAGES)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ising_step(batch: int) -> Callable[[], None]:
    """A step of the Ising phase."""
    network = ViT(ViTConfig())
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites()))
    return pyro_step(model, LikelihoodGuided(model), batch)


def flat_step(batch: int) -> Callable[[], None]:
    """A step of the deterministic network through the same Pyro program."""
    network = ViT(ViTConfig())
    model = IsingViT(network, Flat(network.weight_sites()))
    return pyro_step(model, PointEstimate(model), batch)


METHODS = {"plain torch": plain_step, "deterministic, as a Pyro program": flat_step, "Ising": ising_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 64, 128])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="steps a round; two refreshes of the masks")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'batch':>5}  {'method':33} {'ms a step':>9}  {'ratio':>5}")
    for batch in options.batches:
        with pyro.validation_enabled(False):
            methods = {name: make(batch) for name, make in METHODS.items()}
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
