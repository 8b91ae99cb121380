"""Scores and calibration of predicted probabilities.

References:
    Naeini, Cooper & Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    Nguyen & O'Connor, "Posterior Calibration and Exploratory Analysis for Natural Language Processing Models",
    EMNLP 2015 (bins of equal mass).
    Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
    Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019 (AURC).
"""

import pandas as pd
import torch
import torchmetrics.functional.classification as tm
from torch import Tensor

from ..errors import InputError
from ..scores import brier, correct, mean_scores, nll

BINS = 15
"""Number of confidence bins of the calibration errors."""

PUBLISHED = ("accuracy", "precision", "recall", "f1", "false_positive_rate")
"""The five scores in the radar charts of the published study."""


def metrics(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of predicted probabilities.

    Args:
        probs: (n, classes).
        labels: true labels, (n,).

    Returns:
        ``accuracy``; ``nll``, the mean negative log-likelihood in nats; ``brier``, the multiclass Brier score,
        within [0, 2]; ``ece`` and ``mce``, the expected and the maximum calibration error over `BINS` bins of
        equal width; ``adaptive_ece``, the expected calibration error over `BINS` bins of equal mass; ``aurc`` and
        ``excess_aurc``, see `risk_coverage`, where images are ordered by the largest probability; ``precision``,
        ``recall``, ``f1`` and ``false_positive_rate``, computed for each class against the rest and averaged over the
        classes (a class that is neither present nor predicted is left out).

    Raises:
        InputError: if there is no image.
    """
    if not len(labels):
        raise InputError("labels: there is none, so nothing to score; give the predictions of at least one image")
    probs, classes = probs.detach(), probs.shape[-1]
    means = mean_scores(probs, labels)
    each = {"num_classes": classes, "average": "macro"}
    below = probs.clamp_max(1 - torch.finfo(probs.dtype).eps)  # torchmetrics has a bin of its own for exactly 1
    return {
        "accuracy": means["accuracy"],
        "nll": means["nll"],
        "ece": float(tm.multiclass_calibration_error(below, labels, classes, n_bins=BINS, norm="l1")),
        "brier": means["brier"],
        "mce": float(tm.multiclass_calibration_error(below, labels, classes, n_bins=BINS, norm="max")),
        "adaptive_ece": float(_gap(reliability_table(probs, labels, equal_mass=True))),
        **risk_coverage(-probs.max(-1).values, probs.argmax(-1) == labels),
        "precision": float(tm.multiclass_precision(probs, labels, **each)),
        "recall": float(tm.multiclass_recall(probs, labels, **each)),
        "f1": float(tm.multiclass_f1_score(probs, labels, **each)),
        "false_positive_rate": 1 - float(tm.multiclass_specificity(probs, labels, **each)),
    }


def paired_difference(probs: Tensor, other: Tensor, labels: Tensor) -> pd.DataFrame:
    """Differences between the scores of two methods on the same images.

    Args:
        probs, other: predicted probabilities of the two methods, (n, classes).
        labels: true labels, (n,).

    Returns:
        One row for each ``score`` (``accuracy``, ``nll``, ``brier``): ``difference``, the mean score of the first
        method minus that of the second, and ``se``, its standard error, estimated from the spread of the differences
        among the images (NaN for a single image).
    """
    labels, rows = labels.cpu(), []
    first, second = probs.cpu().double(), other.cpu().double()
    for score, of in (("accuracy", correct), ("nll", nll), ("brier", brier)):
        gap = of(first, labels) - of(second, labels)
        se = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else float("nan")
        rows.append({"score": score, "difference": float(gap.mean()), "se": se})
    return pd.DataFrame(rows)


def reliability_table(probs: Tensor, labels: Tensor, bins: int = BINS, equal_mass: bool = False) -> pd.DataFrame:
    """Accuracy against confidence (the probability of the most probable class), in bins of confidence.

    Args:
        probs: (n, classes).
        labels: true labels, (n,).
        bins: number of bins. Bins without images are left out of the table.
        equal_mass: whether the bins hold equal numbers of images instead of being equally wide.

    Returns:
        One row for each bin, with columns ``images`` (how many), ``confidence`` and ``accuracy`` (means within the
        bin), ``lower`` and ``upper`` (Wilson's 95 % interval of the accuracy).

    Raises:
        InputError: if ``bins`` is below 1.
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
    lower, upper = wilson_interval(table["accuracy"], table["images"])
    return table.assign(lower=lower, upper=upper).reset_index(drop=True)


def wilson_interval(share: pd.Series, count: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Wilson's 95 % interval of shares of counts: lower and upper bounds."""
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return centre - half, centre + half


def selective_accuracy(uncertainty: Tensor, right: Tensor) -> pd.DataFrame:
    """Accuracy on the images that are answered, if the most uncertain ones are left unanswered.

    Args:
        uncertainty: (n,), e.g. the entropy of a `Prediction`.
        right: (n,), whether the most probable class of each image is its label.

    Returns:
        One row for each image, the most certain first, with columns ``coverage``, the share of the images that is
        answered, and ``accuracy`` on those. Where images tie, it is the mean over their orders.
    """
    _, place, images = uncertainty.cpu().unique(return_inverse=True, return_counts=True)
    of_place = torch.zeros(len(images), dtype=torch.double).index_add(0, place, right.cpu().double()) / images
    hits = of_place.repeat_interleave(images).cumsum(0)
    answered = torch.arange(1, len(hits) + 1)
    return pd.DataFrame({"coverage": (answered / len(hits)).numpy(), "accuracy": (hits / answered).numpy()})


def risk_coverage(uncertainty: Tensor, right: Tensor) -> dict[str, float]:
    """Area under the risk-coverage curve.

    Args:
        uncertainty, right: see `selective_accuracy`.

    Returns:
        ``aurc``, the share of wrong answers among the k most certain images, averaged over k from 1 to n; and
        ``excess_aurc``, its difference from that of the best order of the same answers, all right ones first. Both are
        within [0, 1], and lower is better.
    """
    aurc = 1 - float(selective_accuracy(uncertainty, right)["accuracy"].mean())
    best = 1 - float(selective_accuracy(~right, right)["accuracy"].mean())
    return {"aurc": aurc, "excess_aurc": aurc - best}


def _gap(table: pd.DataFrame) -> float:
    """Expected calibration error of a reliability table."""
    weight = table["images"] / table["images"].sum()
    return float((weight * (table["confidence"] - table["accuracy"]).abs()).sum())
