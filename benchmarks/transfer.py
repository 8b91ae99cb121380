"""Few images, from a network that was trained on others: ours beside fine-tuning and a linear probe.

25 images of each class; settings of every method are chosen by the calibrated NLL of 250 held-out images. Mixtures and
ensembles have the setting of one member. The tasks are those of `transfer_tasks`:

    python benchmarks/transfer.py digits --data-root MNIST [--seeds 0 1 2] [--work FOLDER]
    python benchmarks/transfer.py turned --data-root MNIST
    python benchmarks/transfer.py photographs --data-root CIFAR-10 --weights vit_s_focus.onnx
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from calibrated import scores
from transfer_tasks import TASKS, Task

import pyro_isingvit as iv
from pyro_isingvit.diagnostics.calibration import metrics
from pyro_isingvit.experiments.page import markdown

Adapt = Callable[..., iv.Adapted]
"""`iv.adapt` of a task's module, with the options that a method gives."""

Guided = Callable[[Adapt, float], iv.Guide]
"""A guide of a method, from its network and a setting."""


def plain(adapt: Adapt, setting: float) -> iv.Guide:
    """Weights decay to zero, by the Gaussian prior at a temperature; not at all at 0."""
    return _point(adapt(), setting)


def towards(adapt: Adapt, setting: float) -> iv.Guide:
    """Weights decay to what they were."""
    return _point(adapt(around="pretrained"), setting)


def probe(adapt: Adapt, setting: float) -> iv.Guide:
    """The last layer alone."""
    return _point(adapt(include=("head",), train="masked"), setting)


def _point(network: iv.Adapted, setting: float) -> iv.Guide:
    sites = network.weight_sites()
    prior = iv.Prior(sites) if setting else iv.priors.Flat(sites)
    return iv.guides.PointEstimate(iv.IsingNetwork(network, prior))


def ising(adapt: Adapt, setting: float) -> iv.Guide:
    """Ours; the setting is the scale of the slab, as a multiple of one over the root of the fan-in."""
    return _ising(adapt(), setting)


def changes(adapt: Adapt, setting: float) -> iv.Guide:
    return _ising(adapt(around="pretrained"), setting)


def _ising(network: iv.Adapted, slab_scale: float) -> iv.Guide:
    sites = network.weight_sites()
    prior = iv.IsingSpikeSlab(sites, inclusion=0.2, couplings=network.couplings, slab_scale=slab_scale)
    return iv.LikelihoodGuided(iv.IsingNetwork(network, prior))


METHODS: dict[str, tuple[Guided, bool]] = {
    "from scratch": (plain, False),
    "fine-tuned": (plain, True),
    "fine-tuned, decay to pretrained": (towards, True),
    "linear probe": (probe, True),
    "Ising about zero": (ising, True),
    "Ising about the pretrained": (changes, True),
}
"""Guide of each method, and whether it starts from the source."""

SEVERAL: dict[str, tuple[tuple[str, int], ...]] = {
    "digits": (
        ("fine-tuned", 3),
        ("Ising about zero", 3),
        ("Ising about the pretrained", 2),
        ("Ising about the pretrained", 3),
    ),
    "turned": (("fine-tuned", 3), ("Ising about the pretrained", 2), ("Ising about the pretrained", 3)),
    "photographs": (),
}
"""Mixtures and ensembles of each task: the method of their members, which is run before, and their number."""

Grid = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
"""Settings of methods (temperature, or of ours scale of the slab), and rates of dropout."""

GRIDS: dict[str, Grid] = {
    "digits": {
        "from scratch": ((0.0, 1e-2), (0.0, 0.1)),
        "fine-tuned": ((0.0, 1e-2), (0.0, 0.1)),
        "fine-tuned, decay to pretrained": ((1e-3, 1e-2), (0.0, 0.1)),
        "linear probe": ((0.0, 1e-3, 1e-2), (0.0,)),
        "Ising about zero": ((0.5, 2.0), (0.0, 0.1)),
        "Ising about the pretrained": ((0.5, 2.0), (0.0, 0.1)),
    },
    "turned": {
        "from scratch": ((1e-2,), (0.2, 0.3, 0.4, 0.5)),
        "fine-tuned": ((1e-2,), (0.2, 0.3, 0.4, 0.5)),
        "fine-tuned, decay to pretrained": ((1e-2,), (0.2, 0.3, 0.4, 0.5)),
        "linear probe": ((0.0, 1e-3, 1e-2), (0.0,)),
        "Ising about zero": ((2.0,), (0.2, 0.3)),
        "Ising about the pretrained": ((2.0,), (0.2, 0.3, 0.4)),
    },
    "photographs": {
        "fine-tuned": ((0.0, 1e-2), (0.0, 0.1)),
        "fine-tuned, decay to pretrained": ((1e-2, 1e-1), (0.0,)),
        "linear probe": ((0.0, 1e-3, 1e-2), (0.0,)),
        "Ising about zero": ((1.0,), (0.0,)),
        "Ising about the pretrained": ((0.5, 2.0), (0.0,)),
    },
}
"""With digits the same number for ours as for the others, with turned ones fewer. Photographs take longer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--weights", help="of photographs: DINOv2's ViT-S/14 as ONNX")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"), help="With a folder for each task.")
    options = parser.parse_args()
    work = options.work / options.task
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task = TASKS[options.task](options.data_root, work, options.weights)
    grid = GRIDS[options.task]
    several = {f"{single}, {members} members": (single, members) for single, members in SEVERAL[options.task]}
    methods = [*grid, *several]
    for seed in options.seeds:
        for method in methods:
            path = work / f"{method}-{seed}.json"
            if not path.exists():
                if method in several:
                    single, members = several[method]
                    one = json.loads((work / f"{single}-{seed}.json").read_text())
                    found = run(task, single, seed, (one["setting"],), (one["dropout"],), members)
                else:
                    found = run(task, method, seed, *grid[method])
                path.write_text(json.dumps(found))
                print(seed, method, {k: round(v, 3) for k, v in found.items() if isinstance(v, float)}, flush=True)
    print(markdown(_table(work, methods, options.seeds)))
    for ours in (method for method in methods if method.startswith("Ising")):
        print(f"\n{ours} less others, mean of the pairs ± standard error:\n")
        print(markdown(_differences(work, ours, methods, options.seeds)))


def run(
    task: Task, method: str, seed: int, settings: tuple[float, ...], dropouts: tuple[float, ...], members: int = 1
) -> dict[str, Any]:
    """Scores of a method with the setting that held-out images choose."""
    data = task.data(seed)
    make, pretrained = METHODS[method]
    best: dict[str, Any] | None = None
    for dropout in dropouts:
        for setting in settings:
            start = time.perf_counter()
            seeds = itertools.count(seed, 1000)  # of the first weights of members

            def build(dropout: float = dropout, setting: float = setting, seeds: Iterator[int] = seeds) -> iv.Guide:
                return make(partial(task.adapt, next(seeds), dropout, pretrained), setting)

            ours = method.startswith("Ising")
            temperature: Any = "auto" if ours else (setting or 1.0)
            config = iv.FitConfig(
                steps=2 * task.steps if ours else task.steps,
                batch_size=task.batch,
                learning_rate=task.rate * (1.0 if pretrained else task.head),
                rates={"head*": task.head} if pretrained else {},
                temperature=temperature,
                seed=seed,
                device="cpu",
            )
            result = iv.fit_mixture(build, members, data.train, data.validation, config, progress=False, jobs=1)
            found = _scores(result.posterior, data, task.draws if ours else members)
            found |= {"setting": setting, "dropout": dropout, "seconds": time.perf_counter() - start}
            if best is None or found["validation"] < best["validation"]:
                best = found
    assert best is not None
    return best


def _scores(posterior: iv.Posterior, data: iv.data.Data, draws: int) -> dict[str, Any]:
    calibrated, held_out = posterior.calibrate_and_predict(data.validation, draws)
    of_validation = metrics(held_out, data.validation.labels)
    return scores(posterior, calibrated.logit_scale, data, draws) | {"validation": of_validation["nll"]}


def _table(work: Path, methods: list[str], seeds: list[int]) -> pd.DataFrame:
    rows = []
    for method in methods:
        every = [json.loads((work / f"{method}-{seed}.json").read_text()) for seed in seeds]
        found = pd.DataFrame(every)
        rows.append(
            {
                "method": method,
                "accuracy %": f"{100 * found['accuracy'].mean():.1f} ({100 * found['accuracy'].sem():.1f})",
                "raw NLL": f"{found['raw NLL'].mean():.3f}",
                "NLL": f"{found['NLL'].mean():.3f} ({found['NLL'].sem():.3f})",
                "ECE": f"{found['ECE'].mean():.3f}",
                "weights %": f"{100 * found['weights'].mean():.1f}",
            }
        )
    return pd.DataFrame(rows)


def _differences(work: Path, ours: str, methods: list[str], seeds: list[int]) -> pd.DataFrame:
    def found(method: str) -> pd.DataFrame:
        return pd.DataFrame([json.loads((work / f"{method}-{seed}.json").read_text()) for seed in seeds])

    rows = []
    for method in (method for method in methods if method != ours):
        gap = found(ours)[["accuracy", "NLL"]] - found(method)[["accuracy", "NLL"]]
        rows.append({"less": method} | {name: f"{gap[name].mean():+.4f} ± {gap[name].sem():.4f}" for name in gap})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
