"""What each guide gets wrong, against a reference sample of the same posterior at temperature 1.

Two problems: ten weights with a mask each (`TwoLayers`, 60 images), and a small ViT with a mask for each of the 16
features of a patch (planted labels, 300 images). Chains of masks and weights are those of `sample_reference`.

    python benchmarks/reference.py --json reference.json
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import pyro_isingvit as iv
from pyro_isingvit.data import planted_network
from pyro_isingvit.diagnostics import against_reference, convergence
from pyro_isingvit.experiments.page import markdown
from pyro_isingvit.guides import BackwardIsing
from pyro_isingvit.inference.reference import sample_reference
from pyro_isingvit.testing import TwoLayers

GUIDES: dict[str, Callable[[iv.IsingViT], iv.Guide]] = {
    "MeanField": iv.MeanField,
    "LikelihoodGuided": iv.LikelihoodGuided,
    "BackwardIsing": BackwardIsing,
}


def two_layers(seed: int) -> tuple[iv.IsingViT, iv.Images, iv.Images]:
    """Ten weights, each with a mask, of which those of a hidden unit are coupled."""
    torch.manual_seed(seed)
    network = TwoLayers()
    images = torch.rand(560, 1, 1, 3)
    with torch.no_grad():
        labels = torch.distributions.Categorical(logits=network(images)).sample()
    sites = network.weight_sites()
    graph = iv.CouplingGraph(sites, [iv.Coupling("first", "second", ("hidden",))])
    prior = iv.IsingSpikeSlab(sites, inclusion=0.5, coupling=0.3, couplings=graph, slab_scale=3.0)
    every = iv.Images(images, labels, 2)
    return iv.IsingViT(network, prior), every[:60], every[60:]


def features(seed: int) -> tuple[iv.IsingViT, iv.Images, iv.Images]:
    """A ViT of some 400 weights, with a mask for each input feature; other parameters are those of a fit."""
    data = iv.split(planted_network(seed=seed).images, train=300, test=500, validation=100, seed=seed)
    torch.manual_seed(seed)
    config = iv.ViTConfig(image_size=8, patch_size=4, classes=4, dim=6, depth=1, heads=2, mlp_ratio=1)
    network = iv.ViT(config)
    prior = iv.FeatureSpikeSlab(network.weight_sites(), inclusion=0.5)
    return iv.IsingViT(network, prior), data.train, data.test


PROBLEMS = {"ten weights": two_layers, "features": features}


def fitted(model: iv.IsingViT, guide: iv.Guide, train: iv.Images, seed: int) -> iv.Posterior:
    """Fit a guide with the network's other parameters as they are, since the reference does not move them."""
    for parameter in model.network.parameters():
        parameter.requires_grad_(False)
    config = iv.FitConfig(
        steps=3000, batch_size=30, learning_rate=1e-2, pilot=0.3, temperature=1.0, seed=seed, device="cpu"
    )
    return iv.fit(guide, train, config=config, progress=False).posterior


def rows(problem: str, make: Any, seed: int, draws: int, warmup: int) -> list[dict[str, Any]]:
    """A row for each guide, and one for the chains."""
    model, train, test = make(seed)
    start = time.perf_counter()
    reference = sample_reference(model, train, draws=draws, warmup=warmup, chains=2, seed=seed, progress=False)
    agreement = convergence(reference)
    found: list[dict[str, Any]] = []
    for name, family in GUIDES.items():
        own, _, _ = make(seed)
        try:
            guide = family(own)
        except iv.InputError as error:
            print(f"{problem}, {name}: {error}")
            continue
        posterior = fitted(own, guide, train, seed)
        found.append({"problem": problem, "seed": seed, "guide": name} | against_reference(posterior, reference, test))
    chains = {
        "largest r_hat": float(agreement["r_hat"].max()),
        "least ess": float(agreement["ess"].min()),
        "seconds": time.perf_counter() - start,
    }
    return [row | chains for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    every: list[dict[str, Any]] = []
    for problem in options.problems:
        make = PROBLEMS[problem]
        for seed in options.seeds:
            found = rows(problem, make, seed, options.draws, options.warmup)
            print(*found, sep="\n", flush=True)
            every += found
    table = pd.DataFrame(every)
    shown = table.drop(columns="seed").groupby(["problem", "guide"], sort=False).mean().round(3).reset_index()
    print(markdown(shown))
    if options.json is not None:
        options.json.write_text(json.dumps(every, indent=2) + "\n")


if __name__ == "__main__":
    main()
