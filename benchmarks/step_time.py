"""Compare the time of a training step of the Ising network with a plain one and with other variational methods.

All are whole training steps of the same ViT on random images: forward, backward, clipping, optimiser, and what else the
method does. The methods take turns, so that other work on the machine slows all of them, and memory is kept as in
`fit`. Each figure is the median over the rounds; ratios are taken within a round.

    python benchmarks/step_time.py --threads 1 --json step_time.json
    python benchmarks/step_time.py --threads 1 --vary depth 2 4 8 12 --batches 20
    python benchmarks/step_time.py --threads 1 --vary dim 32 64 128 --batches 50
    python benchmarks/step_time.py --threads 1 --batches 20 128 --compile

With `--compile`, the plain network and the Ising network with compiled steps take part too, and the seconds of the
first step, which has to compile, are given. Set TORCHINDUCTOR_CACHE_DIR to an empty folder to measure without a cache.
IVON and bayesian-torch take part if `ivon-opt` and `bayesian-torch` are installed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

from pyro_isingvit import Guide, IsingSpikeSlab, IsingViT, LikelihoodGuided, MeanField, TraceGraph_ELBO, ViT, ViTConfig
from pyro_isingvit.guides import PointEstimate
from pyro_isingvit.inference.compiled import CompiledStep
from pyro_isingvit.inference.traced import eager_step
from pyro_isingvit.models.priors import Flat
from pyro_isingvit.programs import keeping_memory

IMAGES = 300
"""Number of training images that the losses assume."""

GEOMETRIES = {
    "digits": ViTConfig(image_size=8, patch_size=4, mlp_ratio=8),
    "mnist": ViTConfig(),
    "cifar": ViTConfig(image_size=32, channels=3, patch_size=4, dim=64, heads=8),
}
"""That of the first run, and the smaller networks of the published study's repository."""

Step = Callable[[], None]


def plain_step(config: ViTConfig, batch: int, compiled: bool = False) -> Step:
    """A step of the deterministic ViT in plain torch."""
    network = ViT(config)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(images), labels)

    return torch_step(network, torch.compile(loss) if compiled else loss, batch)


def torch_step(network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batch: int) -> Step:
    """A step of a torch module with Adam."""
    images, labels = random_batch(network.config, batch)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)

    def step() -> None:
        loss(images, labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def pyro_step(
    model: IsingViT, guide: Guide, batch: int, precision: torch.dtype = torch.float32, compiled: bool = False
) -> Step:
    """A training step of a model and guide, as in `fit`."""
    model.num_data, model.temperature = IMAGES, 1e-4
    images, labels = random_batch(model.network.config, batch)
    loss, scale = TraceGraph_ELBO()(model, guide), model.temperature / IMAGES
    parameters = [p for module in (model, guide) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)
    autocast = partial(torch.autocast, "cpu", precision, enabled=precision != torch.float32)
    leave_gradients = CompiledStep(loss, autocast) if compiled else partial(eager_step, loss, autocast)

    def step() -> None:
        leave_gradients(images, labels)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = scale * nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, scale * (1.0 / (norm + 1e-6)).clamp_max(1.0))
        optimizer.step()
        optimizer.zero_grad()
        guide.learn()

    return step


def masked_step(
    config: ViTConfig,
    batch: int,
    guide: Callable[[IsingViT], Guide] = LikelihoodGuided,
    precision: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Step:
    """A step of the Ising phase."""
    network = ViT(config)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites()))
    return pyro_step(model, guide(model), batch, precision, compiled)


def flat_step(config: ViTConfig, batch: int) -> Step:
    """A step of the deterministic network as a Pyro program."""
    network = ViT(config)
    model = IsingViT(network, Flat(network.weight_sites()))
    return pyro_step(model, PointEstimate(model), batch)


def ivon_step(config: ViTConfig, batch: int) -> Step:
    """A step of IVON with one draw."""
    import ivon

    network = ViT(config)
    images, labels = random_batch(config, batch)
    optimizer = ivon.IVON(network.parameters(), lr=0.1, ess=IMAGES, clip_radius=1e-3)

    def step() -> None:
        with optimizer.sampled_params(train=True):
            nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Reparameterised(nn.Module):
    """The ViT with bayesian-torch's layers in place of the linear layers of all weight sites."""

    def __init__(self, config: ViTConfig) -> None:
        from bayesian_torch.layers import LinearReparameterization

        super().__init__()
        self.config, self.network, self.layers = config, ViT(config), nn.ModuleDict()
        for site in self.network.weight_sites():
            blocks = range(config.depth) if "layer" in site.dims else [None]
            outputs = site.numel // site.fan_in // len(blocks)
            for block in blocks:
                self.layers[f"{site.key}_{block}"] = LinearReparameterization(site.fan_in, outputs)
            self.network.get_parameter(site.name).requires_grad_(False)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log-likelihood plus the divergence per training image."""
        divergences = []

        def linear(site: str, block: int | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result, divergence = self.layers[f"{site.replace('.', '_')}_{block}"](x)
            divergences.append(divergence)
            return result

        logits = self.network(images, linear=linear)
        return nn.functional.cross_entropy(logits, labels) + torch.stack(divergences).sum() / IMAGES


def bayesian_torch_step(config: ViTConfig, batch: int) -> Step:
    """A step of mean-field Gaussian weights by bayesian-torch."""
    network = Reparameterised(config)
    return torch_step(network, network.loss, batch)


def random_batch(config: ViTConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    return torch.rand(batch, config.channels, *config.image_size), torch.randint(config.classes, (batch,))


METHODS: dict[str, Callable[[ViTConfig, int], Step]] = {
    "plain torch": plain_step,
    "deterministic, as a Pyro program": flat_step,
    "Ising": masked_step,
    "Ising, bfloat16": partial(masked_step, precision=torch.bfloat16),
    "Ising prior, MeanField": partial(masked_step, guide=MeanField),
    "IVON": ivon_step,
    "bayesian-torch, reparameterised": bayesian_torch_step,
}

COMPILED: dict[str, Callable[[ViTConfig, int], Step]] = {
    "plain torch, compiled": partial(plain_step, compiled=True),
    "Ising, compiled": partial(masked_step, compiled=True),
}


def compare(
    config: ViTConfig, batch: int, rounds: int, steps: int, compiled: bool = False
) -> list[dict[str, float | str]]:
    """Rows of time, ratio to plain torch (compiled to compiled) and first step of every method that is installed."""
    methods, first = {}, {}
    for name, make in (METHODS | (COMPILED if compiled else {})).items():
        try:
            methods[name] = make(config, batch)
        except ImportError as error:
            print(f"without {name}: {error}")
    for name, step in methods.items():
        start = time.perf_counter()
        step()
        first[name] = time.perf_counter() - start
        for _ in range(10):
            step()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, step in methods.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            times[name].append((time.perf_counter() - start) / steps * 1e3)
    rows: list[dict[str, float | str]] = []
    for name, each in times.items():
        plain = times["plain torch, compiled" if name in COMPILED else "plain torch"]
        ratio = statistics.median(a / b for a, b in zip(each, plain, strict=True))
        row = {"method": name, "batch": batch, "ms": statistics.median(each), "ratio": ratio}
        rows.append(row | {"first step s": first[name]} if name in COMPILED else row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mnist")
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 64, 128, 256])
    parser.add_argument("--vary", nargs="+", help="a setting of the geometry, such as depth, and its values")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="steps per round; the masks are updated every ten steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compare compiled steps too")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name, *values = options.vary or ["depth", str(GEOMETRIES[options.geometry].depth)]
    rows = []
    print(f"{name:>6} {'batch':>5}  {'method':33} {'ms a step':>9}  {'ratio':>5}")
    with pyro.validation_enabled(False), keeping_memory():
        for value in values:
            config = GEOMETRIES[options.geometry].model_copy(update={name: int(value)})
            for batch in options.batches:
                for row in compare(config, batch, options.rounds, options.steps, options.compile):
                    rows.append({name: int(value)} | row)
                    first = f"  {row['first step s']:5.0f} s" if "first step s" in row else ""
                    print(f"{value:>6} {batch:5}  {row['method']:33} {row['ms']:9.1f}  {row['ratio']:5.2f}{first}")
    if options.json:
        facts = {"torch": torch.__version__, "processor": platform.processor(), "threads": options.threads}
        options.json.write_text(json.dumps(facts | {"geometry": options.geometry, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
