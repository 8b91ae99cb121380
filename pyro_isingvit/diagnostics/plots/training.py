"""How a fit went."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from .style import DARK, LIGHT, bare, new_axes

PHASE_SHADES = {"path": "#e3ebf3", "ising": "#f1f5f9", "fine-tune": "#dde7f1"}


def plot_loss(history: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Training loss and NLL of held-out images against steps, the phases shaded.

    Args:
        history: `FitResult.history`.
        ax: where to draw; that of a new figure if None.
    """
    ax = _phases(history, ax)
    ax.plot(history["step"], history["loss"], color=LIGHT, label="training loss (with the price of the weights)")
    ax.plot(history["step"], history["nll"], color=DARK, label="NLL of held-out images, one network")
    ax.set(ylabel="nats an image", yscale="log")
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="lower left", fontsize="small", framealpha=0.8, edgecolor="none")
    return ax


def plot_density(history: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of the weights that is kept against steps, expected and in the median-probability model.

    Args:
        history: `FitResult.history` of a guide with masks.
        ax: where to draw; that of a new figure if None.
    """
    ax = _phases(history, ax)
    ax.plot(history["step"], history["expected_density"], color=LIGHT, label="mean inclusion probability")
    ax.plot(history["step"], history["median_density"], color=DARK, label="share in the median-probability model")
    ax.set(ylabel="weights kept", ylim=(0, 1.03))
    ax.legend(loc="lower left", fontsize="small", framealpha=0.8, edgecolor="none")
    return ax


def figure_training(history: pd.DataFrame) -> Figure:
    """`plot_loss` above `plot_density` (where there are masks)."""
    panels = 2 if "median_density" in history else 1
    figure = Figure(figsize=(5.8, 2.4 * panels), layout="constrained")
    axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    plot_loss(history, axes[0])
    if panels == 2:
        plot_density(history, axes[1])
        axes[0].set_xlabel("")
    return figure


def _phases(history: pd.DataFrame, ax: Axes | None) -> Axes:
    """Axes over the steps with the phases shaded and named above."""
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
