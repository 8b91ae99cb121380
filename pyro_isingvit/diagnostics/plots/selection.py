"""Plots of what is selected: inclusion of input features, its reliability, and power against false discoveries."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...errors import InputError
from ...network import ViT
from ...posterior import Posterior
from .style import GREY, MAP, bare, lines, new_axes

COLUMNS = 8
"""Largest number of channels in a row."""


def figure_features(posterior: Posterior) -> Figure:
    """Inclusion probability of every feature of a patch, as one picture for each channel.

    The title of a channel is the expected number of its features that are included. Where weights of a feature have
    masks of their own, the mean over these is shown.

    Args:
        posterior: a posterior of a `ViT` that reads pixels, with masks of the patch embedding.

    Raises:
        InputError: if there are no such masks.
    """
    network, inside = posterior.model.network, posterior.inclusion_probabilities()
    if not isinstance(network, ViT) or "patch_embed" not in inside or network.config.stem != "patches":
        raise InputError("posterior: needs masks of 'patch_embed' of a ViT with stem='patches'")
    height, width = network.config.patch_size
    probs = inside["patch_embed"].cpu().mean(0).view(-1, height, width).numpy()
    columns = min(COLUMNS, len(probs))
    rows = math.ceil(len(probs) / columns)
    figure = Figure(figsize=(1.25 * columns + 0.9, 1.45 * rows + 0.2), layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for ax in axes.flat[len(probs) :]:
        ax.set_axis_off()
    for channel, (ax, picture) in enumerate(zip(axes.flat, probs, strict=False)):
        shown = ax.imshow(picture, cmap=MAP, vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"channel {channel + 1}: {picture.sum():.1f}", fontsize="small")
    figure.colorbar(shown, ax=axes, label="inclusion", shrink=0.9)
    return figure


def plot_inclusion_reliability(tables: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Share that is relevant against inclusion probability, with 95 % intervals.

    Probabilities that are right lie on the diagonal. Larger dots are bins with more masks.

    Args:
        tables: results of `inclusion_reliability` by name.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = new_axes(4.6, 4.4) if ax is None else ax
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, zorder=0)
    for name, style in lines(list(tables)).items():
        table = tables[name]
        bars = [table["relevant"] - table["lower"], table["upper"] - table["relevant"]]
        ax.errorbar(
            table["probability"], table["relevant"], np.clip(bars, 0, None), fmt="none", ecolor=style["color"], lw=1
        )
        ax.plot(table["probability"], table["relevant"], color=style["color"], ls=style["ls"], lw=1)
        size = 8 + 4 * table["masks"].to_numpy(dtype=float) ** 0.5
        ax.scatter(
            table["probability"], table["relevant"], size, color=style["color"], marker=style["marker"], label=name
        )
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="inclusion probability", ylabel="share that is relevant")
    ax.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return bare(ax)


def plot_selection(tables: Mapping[str, pd.DataFrame], at: float | None = None, ax: Axes | None = None) -> Axes:
    """Power against false discovery rate, as the threshold falls.

    Args:
        tables: results of `selection_table` by name; rows without a selection are left out.
        at: false discovery rate to mark by a line; None for no line.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = new_axes(5.2, 4.2) if ax is None else ax
    for name, style in lines(list(tables)).items():
        table = tables[name]
        table = table[table["selected"] > 0].sort_values("threshold", ascending=False)
        ax.plot(
            table["false_discovery_rate"],
            table["power"],
            ms=3.5,
            lw=1.3,
            markevery=max(1, len(table) // 12),
            label=name,
            **style,
        )
    if at is not None:
        ax.axvline(at, color=GREY, lw=1, ls=":")
    ax.set(xlim=(-0.02, 1), ylim=(0, 1.03), xlabel="false discovery rate", ylabel="power")
    ax.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return bare(ax)
