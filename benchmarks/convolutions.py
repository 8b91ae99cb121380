"""A residual network on few photographs: the deterministic network and ours, by the same recipe.

    python benchmarks/convolutions.py --data-root CIFAR-10 [--train 250] [--seeds 0 1 2] [--work FOLDER]

CIFAR-10 is a folder of images by class. Ours has twice the steps of the deterministic network and a search for the
temperature. Both are calibrated on 500 validation images, or as many as there are for training if these are fewer.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from calibrated import scores
from torch import Tensor, nn

import pyro_isingvit as iv
from pyro_isingvit.experiments.page import markdown
from pyro_isingvit.pruning import prune_module

DRAWS = 30
METHODS = ("deterministic", "Ising", "Ising, masks of units")


class Block(nn.Module):
    """Two convolutions, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


def resnet8(classes: int, channels: int) -> nn.Module:
    """The residual network with 8 layers for images of 32 pixels; He et al., CVPR 2016, with one block a stage."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--train", type=int, default=250)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/convolutions"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    every = iv.read("folder", options.data_root)
    rows = []
    for seed in options.seeds:
        data = iv.split(every, options.train, 5200, min(500, options.train), seed)
        for method in METHODS:
            path = options.work / f"{method}-{options.train}-{options.steps}-{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(run(method, data, seed, options.steps)))
                print(path.read_text(), flush=True)
            rows.append({"method": method, "seed": seed} | json.loads(path.read_text()))
    found = pd.DataFrame(rows)
    table = found.drop(columns="seed").groupby("method", sort=False).agg(["mean", "sem"])
    lines = [
        {"method": method}
        | {name: f"{row[name, 'mean']:.3f} ({row[name, 'sem']:.3f})" for name in table.columns.levels[0]}
        for method, row in table.iterrows()
    ]
    print(markdown(pd.DataFrame(lines)))


def run(method: str, data: iv.data.Data, seed: int, steps: int) -> dict[str, Any]:
    """Scores of a method on the test images."""
    torch.manual_seed(seed)
    module = resnet8(data.train.classes, data.train.shape[0])
    standard = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)}
    network = iv.adapt(module, data.train.images[:1], **standard)
    sites, ours, start = network.weight_sites(), method != "deterministic", time.perf_counter()
    if ours:
        options: Any = {"inclusion": 0.45, "coupling": 0.5, "couplings": network.couplings}
        units = method == "Ising, masks of units"
        prior = iv.StructuredSpikeSlab(sites, network.unit_levels, **options) if units else None
        guide: iv.Guide = iv.LikelihoodGuided(iv.IsingNetwork(network, prior or iv.IsingSpikeSlab(sites, **options)))
    else:
        guide = iv.guides.PointEstimate(iv.IsingNetwork(network, iv.priors.Flat(sites)))
    config = iv.FitConfig(
        steps=2 * steps if ours else steps,
        batch_size=50,
        learning_rate=2e-3,
        pilot=0.5 if ours else 0.0,
        temperature="auto" if ours else 1.0,
        augment="photos",
        precision="bfloat16",
        seed=seed,
        device="cpu",
    )
    posterior = iv.fit(guide, data.train, data.validation, config, progress=False).posterior
    seconds = time.perf_counter() - start
    draws = DRAWS if ours else 1
    scale = posterior.calibrate(data.validation).logit_scale
    return scores(posterior, scale, data, draws) | {
        "cut to": _size(prune_module(posterior, data.test.images[:10]).module) / _size(module) if ours else 1.0,
        "temperature": posterior.model.temperature,
        "minutes": seconds / 60,
    }


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main()
