"""Statistics of labels, by the kind of the labels, for predictive checks.

A statistic is a function of labels and of what was predicted for them, and returns a number, or one for each class (or
each of k numbers, or of k labels of an image). What was predicted are mean probabilities, (n, classes) of classes and
(n, k) of several labels; of numbers it is a `TargetPrediction`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..targets import TargetPrediction

Statistic = Callable[[Tensor, Any], Any]
"""A function of labels and of what was predicted for them; see above."""

TAIL = 0.05
"""Share of the numbers below the lower, and above the upper quantile that is checked."""

INTERVAL = 0.9
"""Mass of the predictive intervals whose coverage is checked."""


def class_frequencies(labels: Tensor, probs: Tensor) -> Tensor:
    """Share of the labels in each class."""
    return torch.bincount(labels, minlength=probs.shape[-1]) / len(labels)


def accuracy(labels: Tensor, probs: Tensor) -> Tensor:
    """Share of the labels that are the most probable class; replicated labels average to the mean confidence."""
    return (probs.argmax(-1) == labels).float().mean()


def nll(labels: Tensor, probs: Tensor) -> Tensor:
    """Mean negative log-probability of the labels, in nats; replicated labels average to the mean entropy."""
    return -probs.clamp_min(1e-12).log().gather(-1, labels.unsqueeze(-1)).mean()


def class_error(labels: Tensor, probs: Tensor) -> Tensor:
    """For each class, the share of its images whose most probable class is another; 0 for a class without images."""
    there = torch.bincount(labels, minlength=probs.shape[-1])
    wrong = torch.bincount(labels[probs.argmax(-1) != labels], minlength=probs.shape[-1])
    return wrong / there.clamp_min(1)


def mean(labels: Tensor, predicted: TargetPrediction) -> Tensor:
    """Mean of each of k numbers over the images."""
    return labels.mean(0)


def spread(labels: Tensor, predicted: TargetPrediction) -> Tensor:
    """Standard deviation of each of k numbers over the images."""
    return labels.std(0, correction=0)


def low_quantile(labels: Tensor, predicted: TargetPrediction) -> Tensor:
    """The value of each of k numbers that a share of `TAIL` of the images is below."""
    return labels.quantile(TAIL, 0)


def high_quantile(labels: Tensor, predicted: TargetPrediction) -> Tensor:
    """The value of each of k numbers that a share of `TAIL` of the images is above."""
    return labels.quantile(1 - TAIL, 0)


def residual_where_low(labels: Tensor, predicted: TargetPrediction) -> Tensor:
    """Root mean square of the residuals of each of k numbers, over the third of the images predicted lowest."""
    return _residual(labels, predicted, largest=False)


def residual_where_high(labels: Tensor, predicted: TargetPrediction) -> Tensor:
    """Root mean square of the residuals of each of k numbers, over the third of the images predicted highest.

    With `residual_where_low`, it shows noise that depends on the size of what is predicted.
    """
    return _residual(labels, predicted, largest=True)


def coverage(labels: Tensor, predicted: TargetPrediction) -> Tensor:
    """Share of the images within their predictive intervals, of mass `INTERVAL`, for each of k numbers."""
    return ((labels >= predicted.lower) & (labels <= predicted.upper)).float().mean(0)


def label_frequencies(labels: Tensor, probs: Tensor) -> Tensor:
    """Share of the images that have each label."""
    return labels.float().mean(0)


def number_of_labels(labels: Tensor, probs: Tensor) -> Tensor:
    """Mean number of labels of an image."""
    return labels.sum(1).float().mean()


def spread_of_number(labels: Tensor, probs: Tensor) -> Tensor:
    """Standard deviation of the number of labels of an image, which shows labels that come together, or not."""
    return labels.sum(1).float().std(correction=0)


def label_nll(labels: Tensor, probs: Tensor) -> Tensor:
    """Mean negative log-probability of the labels of an image, each by itself, in nats, summed over them."""
    return -torch.where(labels, probs, 1 - probs).clamp_min(1e-12).log().sum(1).mean()


def label_error(labels: Tensor, probs: Tensor) -> Tensor:
    """For each label, the share of the images on which what is more probable is not so."""
    return ((probs >= 0.5) != labels).float().mean(0)


def _residual(labels: Tensor, predicted: TargetPrediction, largest: bool) -> Tensor:
    third = max(1, len(labels) // 3)
    chosen = predicted.mean.topk(third, 0, largest).indices
    return (labels - predicted.mean).gather(0, chosen).square().mean(0).sqrt()


_ALONE = (
    class_frequencies,
    mean,
    spread,
    low_quantile,
    high_quantile,
    label_frequencies,
    number_of_labels,
    spread_of_number,
)

STATISTICS: Mapping[str, Mapping[str, Statistic]] = {
    "classes": {
        "class frequency": class_frequencies,
        "accuracy": accuracy,
        "nll": nll,
        "class error": class_error,
    },
    "numbers": {
        "mean": mean,
        "sd": spread,
        f"{TAIL:.0%} quantile": low_quantile,
        f"{1 - TAIL:.0%} quantile": high_quantile,
        "residual, predicted low": residual_where_low,
        "residual, predicted high": residual_where_high,
        f"coverage of {INTERVAL:.0%}": coverage,
    },
    "several labels": {
        "label frequency": label_frequencies,
        "labels of an image": number_of_labels,
        "sd of labels of an image": spread_of_number,
        "nll": label_nll,
        "label error": label_error,
    },
}
"""The statistics that are checked unless others are given, by kind of the labels and name."""

OF_LABELS_ALONE: Mapping[str, Mapping[str, Statistic]] = {
    kind: {name: statistic for name, statistic in every.items() if statistic in _ALONE}
    for kind, every in STATISTICS.items()
}
"""Those of `STATISTICS` that do not depend on what was predicted. Mean predictions under a prior tend to be the same
for all images, and what is more probable among them is chance."""
