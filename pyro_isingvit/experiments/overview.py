"""Tables of several runs for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..scores import ISING
from .listing import RunSummary, differing, same_test_images

WIDEST = 1000
"""Columns of text that a table may take."""

SCORES = {
    "accuracy": ("accuracy", "{:.2%}"),
    "nll": ("NLL", "{:.4f}"),
    "ece": ("ECE", "{:.4f}"),
    "brier": ("Brier", "{:.4f}"),
    "auroc": ("AUROC", "{:.3f}"),
    "density": ("kept", "{:.1%}"),
    "expected_density": ("expected", "{:.1%}"),
    "seconds": ("seconds", "{:.0f}"),
}
"""Title and format of the scores in a comparison, by name."""

LISTED = ("accuracy", "nll", "density", "seconds")
"""Those of them in a list of runs."""


def show_runs(top: Path, runs: Sequence[RunSummary], others: Mapping[Path, str]) -> None:
    """Print a row for each run, and what else was found in a folder."""
    table = _table(
        f"Runs in {top}",
        "J: strength of the Ising coupling; T: temperature of the posterior\n"
        "accuracy, NLL: on the test images of each run\n"
        "kept: weights of the median-probability model, relative to one network",
    )
    for column in ("run", "data"):
        table.add_column(column)
    for column in ("training images", "members", "network", "steps", "T", *(SCORES[key][0] for key in LISTED), "date"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for run in runs:
        config, score = run.config, run.scores.get(ISING, {})
        name = run.folder.name if run.folder == top else str(run.folder.relative_to(top))
        what = (name, Path(config.dataset).name, f"{config.train:,}", str(config.members), _network(run))
        found = [_shown(SCORES[key][1], score.get(key)) for key in LISTED] if run.finished else ["unfinished"]
        found += [""] * (len(LISTED) - len(found))
        steps, temperature = f"{config.fit.steps:,}", _shown("{:.2g}", run.temperature)
        table.add_row(*what, steps, temperature, *found, f"{run.written:%Y-%m-%d}")
    if runs:
        _print(table)
    for folder, why in others.items():
        Console().print(why if str(folder) in why else f"{folder}: {why}", highlight=False, soft_wrap=True)


def show_comparison(runs: Sequence[RunSummary]) -> None:
    """Print the settings that differ between runs, and their scores, one column a run."""
    settings, scores = _table("Settings that differ"), _table("Scores on the test images")
    for table in (settings, scores):
        table.add_column("")
        for run in runs:
            table.add_column(f"{run.folder}{'' if run.finished else ' (unfinished)'}", justify="right")
    for name, values in differing(runs).items():
        settings.add_row(name, *(_shown("{}", value) for value in values))
    scores.add_row("temperature", *(_shown("{:.2g}", run.temperature) for run in runs))
    for method in dict.fromkeys(method for run in runs for method in run.scores):
        for key, (title, form) in SCORES.items():
            scores.add_row(f"{method}: {title}", *(_shown(form, run.scores.get(method, {}).get(key)) for run in runs))
    if settings.row_count:
        _print(settings)
    else:
        Console().print("The runs have the same settings.")
    _print(scores)
    if all(run.finished for run in runs) and not same_test_images(runs):
        Console().print(
            "The runs have different test images, which accounts for a part of the differences between their scores.",
            highlight=False,
            soft_wrap=True,
        )


def _table(title: str, caption: str | None = None) -> Table:
    return Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))


def _print(table: Table) -> None:
    """Print a table as wide as it is: lines that a narrow terminal breaks are easier to read than broken cells."""
    console = Console()
    width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    Console(width=max(console.width, width)).print(table)


def _network(run: RunSummary) -> str:
    """The network of a run, and its prior."""
    config = run.config
    network = f"ViT {config.network.depth} x {config.network.dim}" if config.module is None else config.module.name
    return f"{network}, J={config.prior.coupling:g}{', structured' if config.prior.structured else ''}"


def _shown(form: str, value: Any) -> str:
    return "-" if value is None else form.format(value)
