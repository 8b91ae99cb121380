"""Tables of the results of a study."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from .outcome import Predictor
from .study import Result

SCORES = {
    "accuracy": "accuracy, %",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "density": "kept, %",
    "expected_density": "expected, %",
}
"""Scores in the tables, and their column headings."""


def result_table(every: Iterable[Result]) -> pd.DataFrame:
    """One row for each outcome: the run, all metrics on the test images, densities, minutes, and memory in MiB.

    ``method`` is the name of the `Predictor`. Its attributes are in ``base`` (its method), ``median``, ``scaled`` and
    ``curve``.
    """
    from ..diagnostics.calibration import metrics

    rows: list[dict[str, Any]] = []
    every = list(every)
    for result, setting in zip(every, settings_of(every), strict=True):
        cell = result.cell
        of_cell = {"dataset": cell.dataset, "train": cell.train, "setting": setting, "seed": cell.seed}
        for outcome in result.outcomes:
            numbers = outcome.facts()
            predictor = numbers.pop("predictor")
            predictor |= {"base": predictor["method"], "method": str(outcome.predictor)}
            costs = {"minutes": numbers.pop("seconds") / 60, "memory_mib": result.memory}
            rows.append(of_cell | predictor | metrics(outcome.probs, result.labels) | numbers | costs)
    return pd.DataFrame(rows)


def settings_of(every: Sequence[Result]) -> list[str]:
    """The settings of each result that distinguish it from others of its data set and size, as text."""
    blocks: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in every:
        cell = result.cell
        blocks.setdefault((cell.dataset, cell.train), []).append(cell.set)
    texts = []
    for result in every:
        cell = result.cell
        others = blocks[cell.dataset, cell.train]
        names = {name for other in others for name in other if any(o.get(name) != other[name] for o in others)}
        differing = [f"{name}={cell.set[name]}" for name in sorted(names) if name in cell.set]
        texts.append(", ".join([*([cell.setting] if cell.setting else []), *differing]))
    return texts


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the seeds, for every method and setting; curves are left out."""
    keys = ["dataset", "train", "method", "setting"]
    columns = [*SCORES, "temperature", "validation_nll", "minutes", "memory_mib"]
    kept = table[~table["curve"]]
    groups = kept.groupby(keys, sort=False)[columns]
    means, spreads = groups.mean(), groups.std().add_suffix("_sd")
    return means.join(spreads).join(kept.groupby(keys, sort=False).size().rename("seeds")).reset_index()


def differences(every: Iterable[Result], method: str = "ising") -> pd.DataFrame:
    """Compare the predictions of ``method`` with those of each other method on the same test images.

    Methods of the same seed and setting are compared, and ``method`` at every setting with methods that have none. With
    scaled logits, ``method`` is compared only with methods whose logits are scaled too.

    Returns:
        Columns dataset, train, setting, method, baseline, score, ``difference`` (``method`` minus baseline, mean over
        seeds), ``se``, seeds. The standard error is that among the test images, which does not include how much
        trainings differ. From three seeds on, it is the standard error between the seeds, each of which has its own
        test images, if that is larger.
    """
    from ..diagnostics.calibration import paired_difference

    groups: dict[tuple[str, int, str, int], dict[Predictor, tuple[Tensor, Tensor]]] = {}
    every = list(every)
    for result, setting in zip(every, settings_of(every), strict=True):
        cell = result.cell
        own = groups.setdefault((cell.dataset, cell.train, setting, cell.seed), {})
        for outcome in result.outcomes:
            if not outcome.predictor.curve:
                own[outcome.predictor] = outcome.probs, result.labels
    tables = []
    for (dataset, train, setting, seed), methods in groups.items():
        others = groups.get((dataset, train, "", seed), {}) | methods
        both = Predictor(method), Predictor(method, scaled=True)
        for ours in [predictor for predictor in both if predictor in methods]:
            probs, labels = methods[ours]
            for baseline, (other, same) in others.items():
                alike = not ours.scaled or baseline.scaled
                if alike and baseline not in both and torch.equal(labels, same):
                    facts = {"dataset": dataset, "train": train, "setting": setting, "method": str(ours)}
                    facts |= {"baseline": str(baseline), "seed": seed}
                    tables.append(paired_difference(probs, other, labels).assign(**facts))
    if not tables:
        return pd.DataFrame()
    rows = []
    keys = ["dataset", "train", "setting", "method", "baseline", "score"]
    for names, group in pd.concat(tables).groupby(keys, sort=False):
        seeds = len(group)
        within = math.sqrt(float((group["se"] ** 2).sum())) / seeds
        between = float(group["difference"].std()) / math.sqrt(seeds) if seeds >= 3 else 0.0
        rows.append(
            dict(zip(keys, names, strict=True))
            | {"difference": group["difference"].mean(), "se": max(within, between), "seeds": seeds}
        )
    return pd.DataFrame(rows)


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """Where settings were varied: the one that the validation images choose for each seed, and the best one.

    Returns:
        A row for each dataset, train, method and seed with more than one setting: ``chosen`` (least validation NLL),
        its test ``nll`` and ``accuracy``; ``best`` (least test NLL), ``best_nll``, ``best_accuracy`` (the highest).
    """
    rows = []
    keys = ["dataset", "train", "method", "seed"]
    for names, group in table[~table["curve"]].groupby(keys, sort=False):
        if group["setting"].nunique() < 2:
            continue
        chosen, best = group.loc[group["validation_nll"].idxmin()], group.loc[group["nll"].idxmin()]
        rows.append(
            dict(zip(keys, names, strict=True))
            | {"chosen": chosen["setting"], "nll": chosen["nll"], "accuracy": chosen["accuracy"]}
            | {"best": best["setting"], "best_nll": best["nll"], "best_accuracy": group["accuracy"].max()}
        )
    return pd.DataFrame(rows)
