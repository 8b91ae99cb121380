"""How good and how honest predicted probabilities are."""

import torch
import torchmetrics.functional.classification as tm
from torch import Tensor

BINS = 15
"""Confidence bins of the expected calibration error."""


def metrics(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of predicted probabilities.

    Args:
        probs: (n, classes).
        labels: (n,), the truth.

    Returns:
        ``accuracy``; ``nll``, the mean negative log-likelihood in nats; ``ece``, the expected calibration
        error over `BINS` bins of equal width; ``brier``, the multiclass Brier score, within [0, 2].
    """
    classes = probs.shape[-1]
    truth = torch.nn.functional.one_hot(labels, classes)
    return {
        "accuracy": float(tm.multiclass_accuracy(probs, labels, classes, average="micro")),
        "nll": float(torch.nn.functional.nll_loss(probs.clamp_min(1e-12).log(), labels)),
        "ece": float(tm.multiclass_calibration_error(probs, labels, classes, n_bins=BINS, norm="l1")),
        "brier": float((probs - truth).square().sum(-1).mean()),
    }
