"""Pictures of a study: calibration, entropy, density and cost."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .outcome import Predictor
from .study import Result
from .tables import settings_of


@dataclass(frozen=True)
class Tested:
    """Predictions of the same test images.

    Attributes:
        labels: classes of these images, (n,).
        probs: probabilities (n, classes), by the name of the method in the picture.
        variants: for each name of scaled predictions, the name of the same predictions without scaling.
    """

    labels: Tensor
    probs: dict[str, Tensor] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)


LINES = 10
"""Largest number of methods and settings in one calibration picture, so that each line has a style of its own."""


def _drawn(predictor: Predictor, setting: str) -> bool:
    """Whether to draw its calibration. Of scaled predictions, only ours and the deterministic ones are drawn."""
    if predictor.curve or predictor.median:
        return False
    return not predictor.scaled or (not setting and predictor.method in ("ising", "deterministic"))


def _label(method: str, setting: str) -> str:
    """The name of a method in pictures."""
    return f"{method} ({setting.replace(', ', ' ')})" if setting else method


def pictures_of(every: list[Result], table: pd.DataFrame) -> dict[str, Figure]:
    """Draw the pictures of a study, by file name."""
    from ..diagnostics.plots.study import figure_calibration, figure_cost, figure_curves

    pictures: dict[str, Figure] = {}
    for (dataset, train), groups in _tested_alike(every).items():
        stem = f"{stem_of(dataset)}-{train}"
        drawn = [
            (tested, dict(list(tested.probs.items())[start : start + LINES]))
            for tested in groups
            if len(tested.probs) > 1
            for start in range(0, len(tested.probs), LINES)
        ]
        for i, (tested, probs) in enumerate(drawn):
            name = f"{stem}-calibration.png" if i == 0 else f"{stem}-calibration-{i + 1}.png"
            pictures[name] = figure_calibration(probs, tested.labels, tested.variants)
        rows = table[(table["dataset"] == dataset) & (table["train"] == train)]
        if rows["curve"].any():
            pictures[f"{stem}-density.png"] = figure_curves(rows)
    single = table[~(table["curve"] | table["median"] | table["scaled"])]
    if len(single):
        pairs = zip(single["method"], single["setting"], strict=True)
        pictures["cost.png"] = figure_cost(single.assign(method=[_label(*pair) for pair in pairs]))
    return pictures


def _tested_alike(every: Sequence[Result]) -> dict[tuple[str, int], list[Tested]]:
    """Predictions of the first seed by data set and size, grouped by the test images that they were made for."""
    first: dict[tuple[str, int], int] = {}
    groups: dict[tuple[str, int], list[Tested]] = {}
    for result in every:
        key = result.cell.dataset, result.cell.train
        first[key] = min(result.cell.seed, first.get(key, result.cell.seed))
    for result, setting in zip(every, settings_of(every), strict=True):
        key = result.cell.dataset, result.cell.train
        if result.cell.seed != first[key]:
            continue
        known = groups.setdefault(key, [])
        own = next((tested for tested in known if torch.equal(tested.labels, result.labels)), None)
        if own is None:
            own = Tested(result.labels)
            known.append(own)
        for outcome in result.outcomes:
            predictor = outcome.predictor
            if _drawn(predictor, setting):
                label = _label(str(predictor), setting)
                own.probs[label] = outcome.probs
                if predictor.scaled:
                    own.variants[label] = _label(str(replace(predictor, scaled=False)), setting)
    return groups


def stem_of(dataset: str) -> str:
    """Prefix of the file names of a data set's pictures: its name or path, with special characters replaced."""
    return re.sub(r"[^\w-]+", "_", dataset)
