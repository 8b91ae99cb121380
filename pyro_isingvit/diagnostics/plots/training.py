"""Plots of the course of a fit."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from .style import ACCENT, DARK, LIGHT, bare, new_axes

PHASE_SHADES = {"path": "#e3ebf3", "ising": "#f1f5f9", "fine-tune": "#dde7f1"}


def plot_loss(history: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Training loss, and the NLL of held-out images, against steps, by member; phases are shaded.

    Args:
        history: `FitResult.history`; the loss and the NLL are in nats per image.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = _phases(history, ax)
    _lines(ax, history, "loss", LIGHT, "training loss (with the KL divergence of the guide)")
    _lines(ax, history, "nll", DARK, "NLL of held-out images, one network")
    ax.set(ylabel="nats per image", yscale="log")
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.08), fontsize="small", frameon=False)  # above the phases' names
    return ax


def plot_density(history: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Density against steps: expected, and in the median-probability model; phases are shaded.

    Args:
        history: `FitResult.history` of a guide with masks.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = _phases(history, ax)
    _lines(ax, history, "expected_density", LIGHT, "mean inclusion probability")
    _lines(ax, history, "median_density", DARK, "share in the median-probability model")
    ax.set(ylabel="weights kept", ylim=(0, 1.03))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.08), fontsize="small", frameon=False)  # above the phases' names
    return ax


def figure_training(history: pd.DataFrame) -> Figure:
    """`plot_loss`, with `plot_density` below it if there are masks.

    Args:
        history: `FitResult.history`.
    """
    panels = 2 if "median_density" in history else 1
    figure = Figure(figsize=(5.8, 2.7 * panels), layout="constrained")
    axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    plot_loss(history, axes[0])
    if panels == 2:
        plot_density(history, axes[1])
        axes[0].set_xlabel("")
    return figure


def plot_path(table: pd.DataFrame, score: str = "nll", ax: Axes | None = None) -> Axes:
    """A score of the validation images against the density of the median-probability model, at each temperature T.

    Args:
        table: `FitPath.table` or `FitResult.trials`. `path_table` describes the marked rows.
        score: ``nll`` (with one standard error of the difference from its minimum), ``brier`` or ``accuracy``.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = new_axes(5, 3.4) if ax is None else ax
    table = table.assign(median_density=table["median_density"].clip(1e-3))  # 0 has no logarithm
    density = table["median_density"]
    if score == "nll":
        ax.errorbar(density, table["nll"], table["se"], color=DARK, marker=".", lw=1.2, capsize=2)
    else:
        ax.plot(density, table[score], color=DARK, marker=".", lw=1.2)
    marks: dict[str, tuple[str, dict[str, Any]]] = {
        "least_nll": ("least NLL", {"marker": "o", "ms": 13, "mfc": "none"}),
        "sparsest": ("sparsest within one standard error of the least NLL", {"marker": "D", "ms": 7, "mfc": "none"}),
        "chosen": ("chosen", {"marker": ".", "ms": 8}),
    }
    for mark, (label, style) in marks.items():
        if mark not in table:
            continue
        rows = table[table[mark]]
        ax.plot(rows["median_density"], rows[score], ls="", color=ACCENT, mew=1.5, zorder=3, label=label, **style)
    for row in table.itertuples():
        ax.annotate(
            f"{row.temperature:.0e}",
            (row.median_density, getattr(row, score)),
            xytext=(5, 7),
            textcoords="offset points",
            fontsize="x-small",
            color="0.4",
        )
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if density.min() * 0.8 <= t]
    ax.set(xscale="log", xlabel="weights kept", ylabel=score.upper() if score == "nll" else score)
    ax.set_xticks(ticks, [f"{t:.0%}" for t in ticks])
    ax.minorticks_off()
    ax.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return bare(ax)


def _lines(ax: Axes, history: pd.DataFrame, name: str, color: str, label: str) -> None:
    """A line of a column of a history; of a mixture, one for each member."""
    members = history["member"] if "member" in history else pd.Series(0, history.index)
    for k, rows in history.groupby(members):
        ax.plot(rows["step"], rows[name], color=color, label=label if k == 0 else None)


def _phases(history: pd.DataFrame, ax: Axes | None) -> Axes:
    """Axes over the steps, with the phases shaded and their names above."""
    ax = new_axes(8, 3) if ax is None else ax
    begin = 0
    for phase, rows in history.groupby("phase", sort=False):
        end = int(rows["step"].iloc[-1])
        ax.axvspan(begin, end, color=PHASE_SHADES.get(str(phase), "white"), lw=0, zorder=0)
        ax.annotate(
            str(phase),
            ((begin + end) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
        begin = end
    ax.set(xlabel="step", xlim=(0, begin))
    return bare(ax)
