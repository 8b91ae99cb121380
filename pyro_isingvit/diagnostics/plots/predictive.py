"""Plots of predictions, their scores, calibration and uncertainty, and of predictive checks."""

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from torch import Tensor

from ...errors import InputError
from ...prediction import Prediction
from ..calibration import PUBLISHED, reliability_table, selective_accuracy
from .style import ACCENT, DARK, GREY, LIGHT, bare, lines, new_axes, note_right, show_image

NAMES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "false_positive_rate": "1 - false positive rate",
}


def plot_reliability(probs: Mapping[str, Tensor], labels: Tensor, bins: int = 10, ax: Axes | None = None) -> Axes:
    """Reliability diagram: accuracy against confidence in bins of equal mass, with 95 % intervals.

    Calibrated predictions lie on the diagonal.

    Args:
        probs: predicted probabilities by method, (n, classes).
        labels: true labels, (n,).
        bins: number of bins.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = new_axes(4.6, 4.4) if ax is None else ax
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, zorder=0)
    lowest = 1.0
    for method, style in lines(list(probs)).items():
        table = reliability_table(probs[method], labels, bins, equal_mass=True)
        error = [table["accuracy"] - table["lower"], table["upper"] - table["accuracy"]]
        ax.errorbar(
            table["confidence"], table["accuracy"], np.clip(error, 0, None), ms=4, lw=1.2, label=method, **style
        )
        lowest = min(lowest, float(table["lower"].min()), float(table["confidence"].min()))
    low = max(0.0, math.floor(10 * lowest) / 10)
    ax.set(xlim=(low, 1.005), ylim=(low, 1.02), xlabel="confidence", ylabel="accuracy")
    ax.legend(fontsize="small", frameon=False, loc="lower right")
    return bare(ax)


def plot_radar(
    scores: Mapping[str, Mapping[str, float]], ax: Axes | None = None, variants: Mapping[str, str] | None = None
) -> Axes:
    """Radar chart of the five scores of the published study, by method.

    The axes run from a round value at or below the lowest score to 1. The false-positive rate is subtracted from 1.

    Args:
        scores: results of `metrics`, by method.
        ax: polar axes to draw on; those of a new figure if None.
        variants: see `style.lines`.

    Raises:
        InputError: if the axes are not polar.
    """
    if ax is None:
        ax = Figure(figsize=(4.8, 4.4), layout="constrained").add_subplot(projection="polar")
    if ax.name != "polar":
        raise InputError("ax: need polar axes; make them by add_subplot(projection='polar')")
    angles = np.linspace(0, 2 * np.pi, len(PUBLISHED), endpoint=False)
    lowest = 1.0
    for method, style in lines(list(scores), variants).items():
        values = [
            1 - scores[method][name] if name == "false_positive_rate" else scores[method][name] for name in PUBLISHED
        ]
        lowest = min(lowest, *values)
        ax.plot(np.append(angles, angles[0]), [*values, values[0]], ms=4, lw=1.3, label=method, **style)
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.25) if 1 - lowest <= 4 * s)
    low = max(0.0, min(math.floor(lowest / step) * step, 1 - 2 * step))
    ax.set_xticks(angles, [NAMES[name] for name in PUBLISHED])
    for angle, text in zip(angles, ax.get_xticklabels(), strict=True):
        text.set_horizontalalignment("left" if angle == 0 else "center")
    ax.set_ylim(low, 1)
    ticks = [t for t in np.arange(low, 1 + step / 2, step) if t > low][-4:]
    ax.set_yticks(ticks, [f"{t:.3g}" for t in ticks], fontsize="small", color="0.35")
    cast(PolarAxes, ax).set_rlabel_position(36)
    ax.tick_params(axis="x", pad=8)
    ax.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
    return ax


def plot_uncertainty(
    prediction: Prediction,
    labels: Tensor,
    which: Literal["entropy", "mutual_information"] = "entropy",
    ax: Axes | None = None,
) -> Axes:
    """Histograms of the uncertainty of images that are classified correctly and of those that are not.

    Args:
        prediction: prediction of n images.
        labels: true labels, (n,).
        which: the entropy of the prediction, or the mutual information between label and weights; both in nats.
        ax: axes to draw on; those of a new figure if None.
    """
    values, right = getattr(prediction, which), prediction.labels == labels.cpu()
    ax = new_axes(5, 3) if ax is None else ax
    bins = np.linspace(0, float(values.max()) * 1.001 or 1.0, 26)
    styles: dict[str, dict[str, Any]] = {
        "right": {"color": LIGHT, "alpha": 0.9},
        "wrong": {"edgecolor": ACCENT, "hatch": "//", "fill": False},
    }
    for (name, style), part in zip(styles.items(), (right, ~right), strict=True):
        if part.any():
            shares = np.full(int(part.sum()), 1 / int(part.sum()))
            ax.hist(values[part].numpy(), bins.tolist(), weights=shares, label=f"{name} ({len(shares)})", **style)
    ax.set(xlabel=f"{which.replace('_', ' ')}, nats", ylabel="share of the answers", xlim=(0, bins[-1]))
    ax.legend(fontsize="small", frameon=False)
    return bare(ax)


def plot_selective(predictions: Mapping[str, Prediction], labels: Tensor, ax: Axes | None = None) -> Axes:
    """Accuracy against coverage, if the images of highest entropy are left unanswered.

    Args:
        predictions: predictions of n images, by method.
        labels: true labels, (n,).
        ax: axes to draw on; those of a new figure if None.
    """
    ax = new_axes(5, 3) if ax is None else ax
    for method, style in lines(list(predictions)).items():
        prediction = predictions[method]
        table = selective_accuracy(prediction.entropy, prediction.labels == labels.cpu())
        ax.plot(table["coverage"], table["accuracy"], label=method, color=style["color"], ls=style["ls"])
    ax.set(xlim=(0, 1), xlabel="coverage", ylabel="accuracy on the answered images")
    ax.margins(y=0.1)
    ax.legend(fontsize="small", frameon=False, loc="lower left")
    return bare(ax)


def plot_shift(tables: Mapping[str, pd.DataFrame], shift: str, score: str = "nll", ax: Axes | None = None) -> Axes:
    """A score against the strength of a shift.

    Args:
        tables: results of `under_shift`, by method.
        shift: name of the shift.
        score: column of the tables to draw.
        ax: axes to draw on; those of a new figure if None.
    """
    ax = new_axes(4, 3) if ax is None else ax
    for method, style in lines(list(tables)).items():
        table = tables[method]
        rows = table[table["shift"] == shift]
        ax.plot(rows["strength"], rows[score], ms=4, label=method, **style)
    ax.set(xlabel=f"strength of the {shift}", ylabel=score.upper() if score in ("nll", "ece") else score)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize="small", frameon=False)
    return bare(ax)


def plot_check(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Observed statistics of a predictive check against the central 90 % intervals of the replicated statistics.

    Dots show the observed statistics, crosses those for which the check fails, and bars the intervals. Each row is
    centred at the middle of its interval and scaled by half of its width; its observed value is written beside it.

    Args:
        table: result of `predictive_check`.
        ax: axes to draw on; those of a new figure if None.
    """
    names = [
        name if pd.isna(k) else f"{name} {int(k)}" for name, k in zip(table["statistic"], table["class"], strict=True)
    ]
    ax = new_axes(5.6, 0.9 + 0.2 * len(table)) if ax is None else ax
    rows, far = np.arange(len(table)), 4.0
    half = (table["upper"] - table["lower"]) / 2
    gap = table["observed"] - (table["upper"] + table["lower"]) / 2
    place = np.where(half > 0, gap / half.where(half > 0, 1), np.sign(gap) * far).clip(-far, far)
    fails = table["fails"].to_numpy(bool)
    ax.hlines(rows, -1, 1, color=LIGHT, lw=6, label="replicated, central 90 %")
    ax.plot(place[~fails], rows[~fails], "o", color=DARK, ms=4.5, label="observed")
    if fails.any():
        ax.plot(place[fails], rows[fails], "X", color=ACCENT, ms=8, clip_on=False, label="observed, check fails")
    for row, value in enumerate(table["observed"]):
        note_right(ax, row, f"{value:.3f}", 34)
    ax.set_yticks(rows, names, fontsize="small")
    reach = max(2.0, float(np.abs(place).max()) * 1.05)
    ax.set(
        ylim=(len(table) - 0.4, -0.6),
        xlim=(-reach, reach),
        xlabel="distance from the middle of the interval, in half widths",
    )
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize="small", frameon=False)
    return bare(ax)


def figure_samples(
    prediction: Prediction, images: Tensor, labels: Tensor | None = None, top: int = 3, columns: int = 2
) -> Figure:
    """Images with the probabilities of their most probable classes, and the credible intervals of these.

    Args:
        prediction: prediction of the images.
        images: a few images, (n, channels, height, width) within [0, 1].
        labels: true labels, (n,), if known.
        top: number of classes to show for each image.
        columns: number of images in a row.
    """
    n, top = len(images), min(top, prediction.probs.shape[-1])
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(2.6 * columns, 1.45 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, 2 * columns, width_ratios=[1, 1.2] * columns, squeeze=False)
    for ax in grid.flat[2 * n :]:
        ax.set_axis_off()
    for i in range(n):
        picture, bars = grid.flat[2 * i], grid.flat[2 * i + 1]
        show_image(picture, images[i])
        best = prediction.probs[i].topk(top).indices
        mean, lower, upper = (part[i][best].numpy() for part in (prediction.probs, prediction.lower, prediction.upper))
        truth = None if labels is None else int(labels[i])
        colors = [DARK if truth is None or int(k) == truth else LIGHT for k in best]
        places = np.arange(top)
        bars.barh(places, mean, color=colors, height=0.7)
        bars.hlines(places, lower, upper, color=ACCENT, lw=2)
        bars.set_yticks(places, [prediction.name_of(int(k))[:12] for k in best], fontsize="small")
        bars.set(xlim=(0, 1), ylim=(top - 0.4, -0.6))
        bars.set_xticks([0, 1])
        bars.tick_params(axis="x", labelsize="x-small", length=2)
        bare(bars)
        if truth is not None:
            wrong = int(best[0]) != truth
            title = prediction.name_of(truth)[:16] + (" (wrong)" if wrong else "")
            picture.set_title(title, fontsize="small", color=ACCENT if wrong else "k")
    return figure
