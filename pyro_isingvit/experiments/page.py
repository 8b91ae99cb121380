"""The report of a study: a page of tables and pictures, and every number as CSV."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..files import file_digest, read_json, storing, write, write_json, write_table
from ..yaml_text import as_yaml
from .pictures import pictures_of, stem_of
from .plan import Plan
from .record import REPORT
from .study import Result, results
from .tables import SCORES, choices, differences, result_table, summary

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


def write_study(plan: Plan, out: Path, to: Path) -> Path:
    """Write a study's tables (CSV and Markdown) and pictures, and its plan, into a folder.

    Args:
        plan: plan of the study.
        out: folder of the study.
        to: folder to write to; files of an earlier report are replaced.

    Returns:
        Path of the page, ``README.md``.

    Raises:
        InputError: if there are no results yet, or one is damaged.
    """
    from ..diagnostics.plots.style import write_figure  # torchmetrics takes seconds to import

    every = results(plan, out)
    if not every:
        raise InputError(f"out={str(out)!r}: no result of the plan {plan.name!r} there; run the study first")
    with storing(to):
        to.mkdir(parents=True, exist_ok=True)
    earlier = _written(to)
    table = result_table(every)
    gaps, chosen = differences(every), choices(table)
    pictures = pictures_of(every, table)
    tables = {"results.csv": table} | ({"differences.csv": gaps} if len(gaps) else {})
    for name, each in tables.items():
        write_table(to / name, each, "%.6g")
    for name, figure in pictures.items():
        write_figure(figure, to / name, dpi=130)
    missing = len(plan.cells()) - len(every)
    page = to / "README.md"
    write(page, _page(plan, table, gaps, chosen, list(pictures), missing, every))
    files = [*tables, *pictures, page.name]
    for name in earlier - set(files):
        (to / name).unlink(missing_ok=True)
    write_json(to / REPORT, {"files": {name: file_digest(to / name) for name in files}})
    return page


def _written(to: Path) -> set[str]:
    """Names of the files of an earlier report in a folder."""
    if not (to / REPORT).is_file():
        return set()
    files = read_json(to / REPORT).get("files", {})
    return {name for name in files if Path(name).name == name}


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, with numbers to four significant digits."""
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
        parts += [f"![{name}]({name})" for name in pictures if name.startswith(f"{stem_of(str(dataset))}-{train}-")]
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
    """One line on the network that was trained, and for how long."""
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
    return as_yaml(plan.model_dump(mode="json", exclude_defaults=True))
