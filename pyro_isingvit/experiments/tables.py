"""What a study found: tables, and pictures of calibration, entropy, density and cost."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import InputError
from .methods import Predictor
from .plan import Plan
from .study import Result, results

PUBLISHED: dict[tuple[str, int], dict[str, float]] = {
    ("mnist", 300): {"ising": 46.6, "dropout": 48.9, "dropconnect": 54.9},
    ("mnist", 6000): {"ising": 91.1, "dropout": 90.7, "dropconnect": 92.3},
    ("mnist", 18000): {"ising": 95.5, "dropout": 95.8, "dropconnect": 96.7},
    ("fashion-mnist", 300): {"ising": 58.3, "dropout": 56.0, "dropconnect": 60.5},
    ("fashion-mnist", 6000): {"ising": 82.8, "dropout": 82.3, "dropconnect": 84.1},
    ("fashion-mnist", 18000): {"ising": 87.9, "dropout": 88.1, "dropconnect": 90.2},
    ("cifar-10", 250): {"ising": 25.4, "dropout": 22.4, "dropconnect": 25.7},
    ("cifar-10", 5000): {"ising": 45.9, "dropout": 43.5, "dropconnect": 49.7},
    ("cifar-10", 15000): {"ising": 57.7, "dropout": 59.1, "dropconnect": 66.1},
    ("cifar-100", 250): {"ising": 3.7, "dropout": 1.8, "dropconnect": 4.6},
    ("cifar-100", 5000): {"ising": 14.5, "dropout": 12.7, "dropconnect": 22.0},
    ("cifar-100", 15000): {"ising": 25.4, "dropout": 29.2, "dropconnect": 39.6},
}
"""Accuracies in percent that Salem & Kim, arXiv 2511.13221, published: means of 10 seeds, each at its best setting."""


@dataclass(frozen=True)
class Tested:
    """What was tested on the same images.

    Attributes:
        labels: of these images, (n,).
        probs: (n, classes), by label of the picture.
        variants: labels of scaled predictions, and that of the same without.
    """

    labels: Tensor
    probs: dict[str, Tensor] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)


LINES = 10
"""Methods and settings in one picture of calibration, so that each has a style of its own."""

SCORES = {
    "accuracy": "accuracy, %",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "density": "kept, %",
    "expected_density": "expected, %",
}
"""Scores of the tables, and how they are headed there."""


def result_table(every: Iterable[Result]) -> pd.DataFrame:
    """One row for each outcome: what was run, all metrics on the test images, density, minutes, MiB.

    ``method`` names the `Predictor`, of which ``base``, ``median``, ``scaled`` and ``curve`` are the attributes.
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
    """What sets each result apart from others of its data set and size: varied, or set by its block."""
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
    """Mean and standard deviation over the seeds of every method and setting; curves are left out."""
    keys = ["dataset", "train", "method", "setting"]
    columns = [*SCORES, "temperature", "validation_nll", "minutes", "memory_mib"]
    kept = table[~table["curve"]]
    groups = kept.groupby(keys, sort=False)[columns]
    means, spreads = groups.mean(), groups.std().add_suffix("_sd")
    return means.join(spreads).join(kept.groupby(keys, sort=False).size().rename("seeds")).reset_index()


def differences(every: Iterable[Result], method: str = "ising") -> pd.DataFrame:
    """How much better ``method`` predicts than each other method of the same seed and setting (or of no setting).

    Temperature-scaled it is compared with temperature-scaled ones alone.

    Returns:
        Columns dataset, train, setting, method, baseline, score, ``difference`` (of the method less the baseline, mean
        over seeds), ``se``, seeds. The standard error is that among the test images, which knows nothing of how
        trainings differ; from three seeds on that between the seeds if it is larger, since each has test images of its
        own.
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
    """Where settings were varied: the one that validation images choose for each seed, and the best there was.

    Returns:
        A row for each dataset, train, method and seed with more than one setting: ``chosen`` (least validation NLL),
        its test ``nll`` and ``accuracy``; ``best`` (least test NLL), ``best_nll``, ``best_accuracy`` (highest of any).
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


def write_study(plan: Plan, out: Path, to: Path) -> Path:
    """Write a study's tables (CSV and Markdown) and pictures, and its plan, into a folder.

    Args:
        plan: of the study.
        out: its folder.
        to: where to write; files of earlier reports are replaced.

    Returns:
        Path of the page, ``README.md``.

    Raises:
        InputError: if there is no result yet, or one is damaged.
    """
    every = results(plan, out)
    if not every:
        raise InputError(f"out={str(out)!r}: no result of the plan {plan.name!r} there; run the study first")
    to.mkdir(parents=True, exist_ok=True)
    table = result_table(every)
    gaps, chosen = differences(every), choices(table)
    for earlier in [*to.glob("*.png"), *to.glob("*.csv")]:
        earlier.unlink()
    table.to_csv(to / "results.csv", index=False, float_format="%.6g")
    pictures = _pictures(every, table)
    if len(gaps):
        gaps.to_csv(to / "differences.csv", index=False, float_format="%.6g")
    for name, figure in pictures.items():
        figure.savefig(to / name, dpi=130)
    missing = len(plan.cells()) - len(every)
    page = to / "README.md"
    page.write_text(_page(plan, table, gaps, chosen, list(pictures), missing, every))
    return page


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, numbers with four significant digits."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    rows = [[str(column) for column in table.columns], ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _page(
    plan: Plan,
    table: pd.DataFrame,
    gaps: pd.DataFrame,
    chosen: pd.DataFrame,
    pictures: list[str],
    missing: int,
    every: list[Result],
) -> str:
    parts = [f"# Study: {plan.name}", plan.about.strip()]
    if missing:
        parts.append(f"**{missing} of {len(plan.cells())} runs are not there yet.**")
    parts.append(
        "Mean over seeds, ± standard deviation between them where there are several. *kept* is the share of the "
        "weights in the median-probability model, *expected* the mean inclusion probability: what a draw keeps, and "
        "posteriors average over draws (an ensemble keeps several networks). Curves against density are temperature-"
        "scaled, and so is what says so. Minutes are those of training on the machine that ran it."
    )
    means = summary(table)
    for dataset, train in dict.fromkeys(zip(table["dataset"], table["train"], strict=True)):
        parts.append(f"## {dataset}, {train} training images")
        rows = means[(means["dataset"] == dataset) & (means["train"] == train)]
        if len(rows):
            parts.append(_method_table(rows, PUBLISHED.get((str(dataset), int(train)))))
        mine = gaps[(gaps["dataset"] == dataset) & (gaps["train"] == train)] if len(gaps) else gaps
        if len(mine):
            parts.append(
                "Ising less each other method on the same test images, ± standard error (among these images; between "
                "three or more seeds if that is larger):"
            )
            parts.append(_gap_table(mine))
        parts += [f"![{name}]({name})" for name in pictures if name.startswith(f"{_stem(str(dataset))}-{train}-")]
    if len(chosen):
        parts += ["## What the validation images choose", markdown(chosen.replace("", "-"))]
    parts += [f"![{name}]({name})" for name in pictures if name == "cost.png"]
    parts.append("## Plan\n\n```yaml\n" + _yaml(plan) + "```")
    parts.append(
        "Every number, with all metrics and seeds, is in `results.csv`"
        + ("; paired differences are in `differences.csv`." if len(gaps) else ".")
    )
    parts.append("Networks and lengths: " + "; ".join(dict.fromkeys(map(_network, every))) + ".")
    return "\n\n".join(part for part in parts if part) + "\n"


def _network(result: Result) -> str:
    """One line on what was trained, and for how long."""
    cell, network, fit = result.cell, result.config.network, result.config.fit
    return (
        f"{cell.dataset} {cell.train}: {network.stem} {network.patch_size[0]}, dim {network.dim}, "
        f"heads {network.heads}, depth {network.depth}, {fit.steps} steps of {fit.batch_size} images, "
        f"{len(result.labels)} test images"
    )


def _method_table(rows: pd.DataFrame, published: Mapping[str, float] | None) -> str:
    settings = rows["setting"].any()
    lines = []
    for _, row in rows.iterrows():
        line = {"method": row["method"]} | ({"setting": row["setting"] or "-"} if settings else {})
        for score, heading in SCORES.items():
            scale, digits = (100, 1) if heading.endswith("%") else (1, 3)
            line[heading] = _plus_minus(row[score] * scale, row[f"{score}_sd"] * scale, digits)
        line |= {"T": f"{row['temperature']:.1e}" if row["temperature"] != 1 else "-"}
        line |= {"validation NLL": f"{row['validation_nll']:.3f}"} if settings else {}
        lines.append(line | {"minutes": f"{row['minutes']:.1f}", "seeds": str(int(row["seeds"]))})
    if published:
        best = max(published, key=lambda name: published[name])
        lines.append({"method": f"best published ({best})", "accuracy, %": f"{published[best]:.1f}"})
        lines.append({"method": "published Ising", "accuracy, %": f"{published['ising']:.1f}"})
    return markdown(pd.DataFrame(lines).fillna(""))


def _gap_table(gaps: pd.DataFrame) -> str:
    lines = []
    for (setting, method, baseline), rows in gaps.groupby(["setting", "method", "baseline"], sort=False):
        line = {"method": method, "less": baseline} | ({"setting": setting} if setting else {})
        for _, row in rows.iterrows():
            scale, digits = (100, 2) if row["score"] == "accuracy" else (1, 4)
            name = "accuracy, points" if row["score"] == "accuracy" else SCORES[row["score"]]
            line[name] = f"{row['difference'] * scale:+.{digits}f} ± {row['se'] * scale:.{digits}f}"
        lines.append(line)
    return markdown(pd.DataFrame(lines).fillna(""))


def _plus_minus(mean: float, spread: float, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if math.isnan(spread) else f" ± {spread:.{digits}f}")


def _yaml(plan: Plan) -> str:
    return yaml.safe_dump(plan.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=110)


def _drawn(predictor: Predictor, setting: str) -> bool:
    """Whether its calibration is: of the temperature-scaled there is room for ours and the deterministic one alone."""
    if predictor.curve or predictor.median:
        return False
    return not predictor.scaled or (not setting and predictor.method in ("ising", "deterministic"))


def _label(method: str, setting: str) -> str:
    """How a method is called in pictures."""
    return f"{method} ({setting.replace(', ', ' ')})" if setting else method


def _pictures(every: list[Result], table: pd.DataFrame) -> dict[str, Figure]:
    from ..diagnostics.plots.study import figure_calibration, figure_cost, figure_curves

    pictures: dict[str, Figure] = {}
    for (dataset, train), groups in _tested_alike(every).items():
        stem = f"{_stem(dataset)}-{train}"
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
    """By data set and size, the labels of each set of test images (of its first seed) and who says what of them."""
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


def _stem(dataset: str) -> str:
    """What the names of a data set's pictures begin with: its own, or those on the way to its file."""
    return re.sub(r"[^\w-]+", "_", dataset)
