"""Coverage of conformal sets over 20 splits of held-out images, beside the nominal coverage, and the size of the sets.

    python benchmarks/conformal.py --out runs/conformal --data-root FOLDER [--datasets digits mnist]

Digits: 20 fits, each to images of its own split, and one split of its held-out images into calibration and test images.
MNIST: 4 fits, and 5 such splits of each. Given a fit, its calibration and test images are exchangeable whatever the fit
is like, so that the 20 coverages have the same mean and are independent given the fits; sizes of sets are those of the
fits, and their standard error is that between fits. Fits that are done are not run again. Prints tables in Markdown.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import pyro_isingvit as iv
from pyro_isingvit.diagnostics import ConformalRule, conformal_rule
from pyro_isingvit.experiments.page import markdown


@dataclass(frozen=True)
class Setting:
    """Images of each part, numbers of fits and of splits of each, and how to fit: the recipe, with fewer steps."""

    parts: dict[str, int]
    fits: int
    splits: int
    network: dict[str, Any]
    prior: dict[str, float]
    fit: dict[str, Any]


SETTINGS = {
    "digits": Setting(
        parts={"train": 100, "validation": 200, "test": 1000},
        fits=20,
        splits=1,
        network={"image_size": 8, "patch_size": 4, "mlp_ratio": 8},
        prior={"inclusion": 0.2, "coupling": 1.0},
        fit={"steps": 1000, "batch_size": 50, "learning_rate": 4e-3, "pilot": 0.4, "augment": "digits"},
    ),
    "mnist": Setting(
        parts={"train": 300, "validation": 300, "test": 4000},
        fits=4,
        splits=5,
        network={"patch_size": 7},
        prior={"inclusion": 0.45, "coupling": 0.5},
        fit={"steps": 4500, "batch_size": 20, "learning_rate": 2e-3, "pilot": 0.5, "augment": "handwriting-elastic"},
    ),
}

METHODS: dict[str, dict[str, Any]] = {
    "threshold": {"method": "threshold"},
    "APS": {"method": "aps"},
    "APS, not random": {"method": "aps", "random": False},
    "RAPS": {"method": "raps"},
    "threshold, by class": {"method": "threshold", "by_class": True},
    "APS, by class": {"method": "aps", "by_class": True},
}

REUSED = "threshold, validation images reused"
"""The method that calibrates on the images which chose the temperature and the logit scale."""


def predicted(dataset: str, seed: int, out: Path, root: str | None) -> dict[str, Tensor]:
    """Probabilities and labels of the validation and the held-out images of a fit, which is run unless it was."""
    file, setting = out / f"{dataset}-{seed}.npz", SETTINGS[dataset]
    if not file.exists():
        data = iv.split(iv.read(dataset, root if dataset != "digits" else None), seed=seed, **setting.parts)
        torch.manual_seed(seed)
        network = iv.ViT(iv.ViTConfig(**setting.network))
        guide = iv.LikelihoodGuided(iv.IsingViT(network, iv.IsingSpikeSlab(network.weight_sites(), **setting.prior)))
        config = iv.FitConfig(seed=seed, device="cpu", **setting.fit)
        posterior = iv.fit(guide, data.train, data.validation, config, progress=False).posterior
        found = {}
        for name, part in (("validation", data.validation), ("held_out", data.test)):
            found[name], found[f"{name}_labels"] = posterior.predict(part.images).probs, part.labels
        scores = iv.diagnostics.metrics(found["held_out"], data.test.labels)
        print(dataset, seed, {key: round(scores[key], 4) for key in ("accuracy", "nll", "ece")}, flush=True)
        draft = file.with_suffix(".draft.npz")
        np.savez(draft, **found)
        draft.replace(file)
    return {name: torch.from_numpy(array) for name, array in np.load(file).items()}


def row_of(rule: ConformalRule, probs: Tensor, labels: Tensor, **facts: Any) -> dict[str, Any]:
    """Coverage and size on test images, and mean and standard deviation of the coverage by its law."""
    table = rule.evaluate(probs, labels)
    row = facts | table.iloc[0].to_dict() | {f"class {k}": c for k, c in table[["class", "coverage"]].values[1:]}
    row["expected"] = float(rule.expected_coverage[labels].mean())
    if not rule.by_class:
        n, m, mean = int(rule.images[0]), len(labels), row["expected"]
        row["law_sd"] = (mean * (1 - mean) * (n + 1 + m) / (m * (n + 2))) ** 0.5  # Beta-binomial
    return row


def rows_of(dataset: str, seed: int, out: Path, root: str | None, coverage: float) -> list[dict[str, Any]]:
    """Every method on every split of the held-out images of a fit."""
    found, rows = predicted(dataset, seed, out, root), []
    probs, labels = found["held_out"], found["held_out_labels"]
    for split in range(SETTINGS[dataset].splits):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 * seed + split))
        first, second = order.chunk(2)
        for name, options in METHODS.items():
            rule = conformal_rule(probs[first], labels[first], coverage, seed=1000 * seed + split, **options)
            facts = {"dataset": dataset, "method": name, "fit": seed}
            rows.append(row_of(rule, probs[second], labels[second], **facts))
    rule = conformal_rule(found["validation"], found["validation_labels"], coverage)
    rows.append(row_of(rule, probs, labels, dataset=dataset, method=REUSED, fit=seed))
    return rows


def summary(table: pd.DataFrame) -> str:
    """Means over splits, in percent, with standard errors between splits (coverage) or fits (size)."""
    rows = []
    for (dataset, method), own in table.groupby(["dataset", "method"], sort=False):
        lowest = own.filter(like="class ").mean().min()
        sizes = own.groupby("fit")["size"].mean()
        law = "" if own["law_sd"].isna().all() else f"{own['law_sd'].mean():.2%}"
        rows.append(
            {
                "data": dataset,
                "method": method,
                "coverage": f"{own['coverage'].mean():.2%} ± {own['coverage'].sem():.2%}",
                "expected": f"{own['expected'].mean():.2%}",
                "sd": f"{own['coverage'].std():.2%}",
                "sd by its law": law,
                "class of least coverage": f"{lowest:.1%}",
                "classes in a set": f"{sizes.mean():.3f} ± {sizes.sem():.3f}",
                "empty": f"{own['empty'].mean():.1%}",
                "single": f"{own['single'].mean():.1%}",
            }
        )
    return markdown(pd.DataFrame(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root")
    parser.add_argument("--datasets", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--coverage", type=float, nargs="+", default=[0.9, 0.98])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for coverage in options.coverage:
        rows = [
            row
            for dataset in options.datasets
            for seed in range(SETTINGS[dataset].fits)
            for row in rows_of(dataset, seed, options.out, options.data_root, coverage)
        ]
        print(f"Nominal coverage {coverage:.0%}\n\n{summary(pd.DataFrame(rows))}\n")


if __name__ == "__main__":
    main()
