"""Pictures. Each takes ``ax`` and returns it; colours hold in greyscale and for the colour-blind."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..guides import Guide
from .inclusion import inclusion_table

DARK, LIGHT, ACCENT = "#1b3a5c", "#9dc3e6", "#d1495b"
PHASE_SHADES = {"ising": "#eef3f8", "fine-tune": "#dde7f1"}


def plot_training(history: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Loss and held-out NLL (left) and density (right) against steps, the phases shaded.

    Args:
        history: `FitResult.history`.
        ax: where to draw; a new figure if None.
    """
    ax = Figure(figsize=(8, 4), layout="constrained").subplots() if ax is None else ax
    for phase, rows in history.groupby("phase", sort=False):
        begin = max(0, history["step"].shift(fill_value=0)[rows.index[0]])
        ax.axvspan(begin, rows["step"].iloc[-1], color=PHASE_SHADES.get(str(phase), "white"), lw=0, zorder=0)
        ax.annotate(
            str(phase), (begin, 1), xycoords=("data", "axes fraction"), xytext=(4, -12), textcoords="offset points"
        )
    ax.plot(history["step"], history["loss"], color=LIGHT, label="loss a training image (nats)")
    ax.plot(history["step"], history["nll"], color=DARK, label="NLL a held-out image (nats)")
    ax.set(xlabel="step", ylabel="nats", yscale="log", xlim=(0, history["step"].iloc[-1]))
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    if "median_density" in history:
        right = ax.twinx()
        right.plot(history["step"], history["expected_density"], color=ACCENT, ls="--", label="expected density")
        right.plot(history["step"], history["median_density"], color=ACCENT, label="density, median model")
        right.set(ylim=(0, 1.02), ylabel="share of weights kept")
        right.spines["top"].set_visible(False)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    ax.legend(handles, labels, loc="lower left", fontsize="small", frameon=False)
    return ax


def plot_inclusion(guide: Guide, ax: Axes | None = None) -> Axes:
    """Mean inclusion probability of each role and block (bars), and the share in the median model (dots).

    Args:
        guide: a guide with masks.
        ax: where to draw; a new figure if None.
    """
    table = inclusion_table(guide)
    names = [
        site if pd.isna(layer) else f"{site.removeprefix('encoder.')}, block {int(layer) + 1}"
        for site, layer in zip(table["site"], table["layer"], strict=True)
    ]
    if ax is None:
        ax = Figure(figsize=(7, 1.2 + 0.27 * len(table)), layout="constrained").subplots()
    rows = range(len(table))
    ax.barh(rows, table["expected"], color=LIGHT, label="mean inclusion probability")
    ax.plot(table["median"], rows, "o", color=DARK, ms=5, label="share in the median-probability model")
    for row, weights in enumerate(table["weights"]):
        ax.annotate(f"{weights:,}", (1, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize="small")
    ax.annotate("weights", (1, -0.9), xytext=(6, 0), textcoords="offset points", va="center", fontsize="small")
    ax.set_yticks(rows, names)
    ax.set(xlim=(0, 1), ylim=(len(table) - 0.4, -1.3), xlabel="inclusion")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, fontsize="small", frameon=False)
    return ax
