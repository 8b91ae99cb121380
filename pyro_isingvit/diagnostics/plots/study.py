"""Plots of a study, which compare many methods."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, StrMethodFormatter
from torch import Tensor

from ..calibration import metrics, reliability_table
from .predictive import plot_radar
from .style import ACCENT, DARK, GREY, LIGHT, bare, lines, new_axes

CURVE_STYLES: dict[tuple[str, bool], dict[str, Any]] = {
    ("ising-path", False): {"color": DARK, "marker": "o", "ls": "-"},
    ("ising-path", True): {"color": LIGHT, "marker": "s", "ls": "--"},
    ("magnitude-pruning", False): {"color": ACCENT, "marker": "^", "ls": "-."},
}
"""Styles by method, and by whether the curve is that of its median-probability model."""

MARKS = {"least_nll": ("least validation NLL", "o", 11), "sparsest": ("sparsest within one standard error", "D", 10)}
"""Label, marker and marker size of the points of a path that `path_table` marks."""


def figure_calibration(
    probs: Mapping[str, Tensor], labels: Tensor, variants: Mapping[str, str] | None = None
) -> Figure:
    """Calibration curves, distributions of the entropy, and the five scores of the published study, by method.

    Args:
        probs: predicted probabilities by method, (n, classes).
        labels: true labels, (n,).
        variants: see `style.lines`.
    """
    figure = Figure(figsize=(11.5, 4.6), layout=ConstrainedLayoutEngine(wspace=0.06, h_pad=0.15))
    grid = figure.add_gridspec(1, 3, width_ratios=[1, 1, 1.3])
    left, middle = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    plot_calibration(probs, labels, left, variants)
    plot_entropies(probs, middle, variants)
    right, scores = figure.add_subplot(grid[2], projection="polar"), {m: metrics(p, labels) for m, p in probs.items()}
    plot_radar(scores, right, variants).get_legend().remove()  # type: ignore[union-attr]
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize="small", frameon=False)
    return figure


def plot_calibration(
    probs: Mapping[str, Tensor], labels: Tensor, ax: Axes | None = None, variants: Mapping[str, str] | None = None
) -> Axes:
    """Accuracy minus confidence in bins of equal mass; negative values mean overconfidence.

    Args:
        probs: predicted probabilities by method, (n, classes).
        labels: true labels, (n,).
        ax: axes to draw on; those of a new figure if None.
        variants: see `style.lines`.
    """
    ax = new_axes(4.2, 3.8) if ax is None else ax
    ax.axhline(0, color=GREY, lw=1, zorder=0)
    for method, style in lines(list(probs), variants).items():
        table = reliability_table(probs[method], labels, 10, equal_mass=True)
        ax.plot(table["confidence"], table["accuracy"] - table["confidence"], ms=4, lw=1.2, label=method, **style)
    ax.set(xlabel="confidence", ylabel="accuracy less confidence")
    return bare(ax)


def plot_entropies(
    probs: Mapping[str, Tensor], ax: Axes | None = None, variants: Mapping[str, str] | None = None
) -> Axes:
    """Cumulative distribution of the predictive entropy of the test images, by method.

    Args:
        probs: predicted probabilities by method, (n, classes).
        ax: axes to draw on; those of a new figure if None.
        variants: see `style.lines`.
    """
    ax = new_axes(4.2, 3.8) if ax is None else ax
    highest = 0.0
    for method, style in lines(list(probs), variants).items():
        p = probs[method].double()
        entropy = np.sort((-(p * p.clamp_min(1e-300).log()).sum(-1)).numpy())
        share = np.arange(1, len(entropy) + 1) / len(entropy)
        ax.plot(entropy, share, label=method, color=style["color"], ls=style["ls"], lw=1.4)
        highest = max(highest, float(entropy[-1]))
    ax.set(xlim=(0, highest), ylim=(0, 1.01), xlabel="predictive entropy, nats", ylabel="share of the test images")
    return bare(ax)


def figure_curves(table: pd.DataFrame) -> Figure:
    """Accuracy and NLL against density: curves for methods with several densities, single points for the others.

    Args:
        table: rows of `experiments.tables.result_table` for one data set and number of training images.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for ax, score in zip(figure.subplots(1, 2), ("accuracy", "nll"), strict=True):
        plot_curves(table, score, ax)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def plot_curves(table: pd.DataFrame, score: str = "accuracy", ax: Axes | None = None) -> Axes:
    """A score against the expected density, that is, the share of the weights that is in a network.

    Args:
        table: see `figure_curves`.
        score: column of the table to draw.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = new_axes(4.5, 3.8) if ax is None else ax
    for (base, median), style in CURVE_STYLES.items():
        curves = table[table["curve"] & (table["base"] == base) & (table["median"] == median)]
        method = curves["method"].iloc[0] if len(curves) else base
        for i, (_, rows) in enumerate(curves.groupby(["setting", "seed"])):
            rows = rows.sort_values("expected_density")
            ax.plot(rows["expected_density"], rows[score], ms=5, lw=1.3, label=method if i == 0 else None, **style)
            for mark, (label, marker, size) in MARKS.items():
                marked = rows[rows["mark"].fillna("").str.contains(mark)]
                name = f"path: {label}" if i == 0 and len(marked) else None
                of_mark: dict[str, Any] = {"marker": marker, "ms": size, "color": GREY, "ls": "", "label": name}
                ax.plot(marked["expected_density"], marked[score], mfc="none", mew=1.2, **of_mark)
    for method, marker, color in (("ising", "*", DARK), ("deterministic", "s", GREY)):
        alone = table[table["scaled"] & ~table["median"] & ~table["curve"]]
        rows = alone[(alone["base"] == method) & (alone["setting"] == "")]
        if len(rows):
            label = f"{method} (auto)" if method == "ising" else method
            size = 9 if marker == "*" else 6
            ax.plot(rows["expected_density"], rows[score], marker, color=color, ms=size, label=label)
    ax.set(xscale="log", xlabel="weights in a network", ylabel=score.upper() if score == "nll" else score)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if t >= 0.8 * float(table["expected_density"].min())]
    ax.set_xticks(ticks, [f"{t:.0%}" for t in ticks])
    ax.minorticks_off()
    return bare(ax)


def figure_cost(table: pd.DataFrame) -> Figure:
    """Minutes of training and peak memory of each method, by data set and number of training images.

    Args:
        table: rows of `experiments.tables.result_table`.
    """
    groups = list(table.groupby(["dataset", "train"], sort=False))
    methods = list(dict.fromkeys(table["method"]))
    figure = Figure(figsize=(9, 0.9 + 0.32 * len(methods) + 0.6), layout="constrained")
    places = np.arange(len(methods))
    shades = [DARK, LIGHT, ACCENT, GREY, "#5c7f9f", "#e3b48f"]
    for ax, (score, label) in zip(
        figure.subplots(1, 2, sharey=True),
        (("minutes", "minutes"), ("memory_mib", "peak memory of the process, MiB")),
        strict=True,
    ):
        for i, ((dataset, train), rows) in enumerate(groups):
            means = rows.groupby("method")[score].mean().reindex(methods)
            ax.plot(means, places, "osD^vP"[i % 6], color=shades[i % len(shades)], ms=6, label=f"{dataset} {train}")
        ax.set_yticks(places, methods, fontsize="small")
        ax.set(xlabel=label, ylim=(len(methods) - 0.5, -0.5))
        ax.grid(axis="y", color="0.9")
        bare(ax)
    figure.axes[0].set_xscale("log")
    figure.axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    figure.axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    figure.axes[0].minorticks_off()
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), fontsize="small", frameon=False)
    return figure
