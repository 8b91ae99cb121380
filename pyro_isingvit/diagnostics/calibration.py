"""How good and how honest predicted probabilities are.

References:
    Naeini, Cooper & Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    Nguyen & O'Connor, "Posterior Calibration and Exploratory Analysis for Natural Language Processing Models",
    EMNLP 2015 (bins of equal mass).
    Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
"""

import pandas as pd
import torch
import torchmetrics.functional.classification as tm
from torch import Tensor

from ..errors import InputError
from ..scores import brier, correct, mean_scores, nll

BINS = 15
"""Confidence bins of the calibration errors."""

PUBLISHED = ("accuracy", "precision", "recall", "f1", "false_positive_rate")
"""The five scores of the published radar charts."""


def metrics(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of predicted probabilities.

    Args:
        probs: (n, classes).
        labels: (n,), the truth.

    Returns:
        ``accuracy``; ``nll``, the mean negative log-likelihood in nats; ``brier``, the multiclass Brier score,
        within [0, 2]; ``ece`` and ``mce``, the expected and the largest calibration error over `BINS` bins of
        equal width; ``adaptive_ece``, the expected one over `BINS` bins of equal mass; ``precision``,
        ``recall``, ``f1`` and ``false_positive_rate``, one class against the rest, averaged over the
        classes (a class that is neither there nor predicted is left out).
    """
    classes = probs.shape[-1]
    means = mean_scores(probs, labels)
    each = {"num_classes": classes, "average": "macro"}
    return {
        "accuracy": means["accuracy"],
        "nll": means["nll"],
        "ece": float(tm.multiclass_calibration_error(probs, labels, classes, n_bins=BINS, norm="l1")),
        "brier": means["brier"],
        "mce": float(tm.multiclass_calibration_error(probs, labels, classes, n_bins=BINS, norm="max")),
        "adaptive_ece": float(_gap(reliability_table(probs, labels, equal_mass=True))),
        "precision": float(tm.multiclass_precision(probs, labels, **each)),
        "recall": float(tm.multiclass_recall(probs, labels, **each)),
        "f1": float(tm.multiclass_f1_score(probs, labels, **each)),
        "false_positive_rate": 1 - float(tm.multiclass_specificity(probs, labels, **each)),
    }


def paired_difference(probs: Tensor, other: Tensor, labels: Tensor) -> pd.DataFrame:
    """How much better one method predicts the same images than another.

    Args:
        probs, other: (n, classes) of the two methods.
        labels: (n,), the truth.

    Returns:
        A row for each ``score`` (``accuracy``, ``nll``, ``brier``): ``difference``, that of the first less that of the
        second, and ``se``, its standard error from the spread of the differences among the images.
    """
    labels, rows = labels.cpu(), []
    first, second = probs.cpu().double(), other.cpu().double()
    for score, of in (("accuracy", correct), ("nll", nll), ("brier", brier)):
        gap = of(first, labels) - of(second, labels)
        se = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else float("nan")
        rows.append({"score": score, "difference": float(gap.mean()), "se": se})
    return pd.DataFrame(rows)


def reliability_table(probs: Tensor, labels: Tensor, bins: int = BINS, equal_mass: bool = False) -> pd.DataFrame:
    """Accuracy against confidence, by bins of confidence (the probability of the most probable class).

    Args:
        probs: (n, classes).
        labels: (n,), the truth.
        bins: number of bins; those without images are left out.
        equal_mass: whether bins hold equally many images rather than being equally wide.

    Returns:
        Columns ``images``, ``confidence`` and ``accuracy`` (means within the bin), ``lower`` and ``upper``
        (Wilson's 95 % interval of the accuracy).

    Raises:
        InputError: if there are no bins.
    """
    if bins < 1:
        raise InputError(f"bins={bins}: need at least one")
    confidence, predicted = (part.cpu() for part in probs.max(-1))
    right = (predicted == labels.cpu()).float()
    if equal_mass:
        place = torch.empty_like(predicted)
        place[confidence.argsort()] = torch.arange(len(place)) * bins // len(place)
    else:
        place = (confidence * bins).long().clamp_max(bins - 1)
    frame = pd.DataFrame({"bin": place.numpy(), "confidence": confidence.numpy(), "accuracy": right.numpy()})
    table = frame.groupby("bin").agg(
        images=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    n, share, z = table["images"], table["accuracy"], 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return table.assign(lower=centre - half, upper=centre + half).reset_index(drop=True)


def selective_accuracy(uncertainty: Tensor, right: Tensor) -> pd.DataFrame:
    """Accuracy on the images that one would answer, if the most uncertain ones are left to somebody else.

    Args:
        uncertainty: (n,), e.g. the entropy of a `Prediction`.
        right: (n,), whether each answer is right.

    Returns:
        Columns ``coverage``, the share answered, and ``accuracy`` on them; a row for each image, the most
        certain first. Ties are broken by order.
    """
    order = uncertainty.cpu().argsort(stable=True)
    hits = right.cpu().double()[order].cumsum(0)
    answered = torch.arange(1, len(hits) + 1)
    return pd.DataFrame({"coverage": (answered / len(hits)).numpy(), "accuracy": (hits / answered).numpy()})


def _gap(table: pd.DataFrame) -> float:
    """Expected calibration error of a reliability table."""
    weight = table["images"] / table["images"].sum()
    return float((weight * (table["confidence"] - table["accuracy"]).abs()).sum())
