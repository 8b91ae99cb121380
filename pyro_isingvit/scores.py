"""Scores of predicted probabilities, image by image: negative log-likelihood, Brier score, correctness.

References:
    Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950.
"""

import torch
from torch import Tensor

ISING, MEDIAN, PLAIN, ENSEMBLE = "ising", "median network", "deterministic", "ensemble"
"""Names of what predicts, in tables of scores."""

SMALLEST = 1e-12
"""Probabilities are clamped to at least this."""


def nll(probs: Tensor, labels: Tensor) -> Tensor:
    """Negative log-probability of each label, in nats, (n,).

    Args:
        probs: (n, classes).
        labels: (n,), the true classes, on the same device.
    """
    return -probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1).clamp_min(SMALLEST).log()


def brier(probs: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of the probabilities from the one-hot label, within [0, 2], (n,); see `nll`."""
    return (probs - torch.nn.functional.one_hot(labels, probs.shape[-1])).square().sum(-1)


def correct(probs: Tensor, labels: Tensor) -> Tensor:
    """1 where the most probable class is the label, else 0, (n,); see `nll`."""
    return (probs.argmax(-1) == labels).to(probs.dtype)


def mean_scores(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Means over the images: ``accuracy`` (a share), ``nll`` (in nats) and ``brier``; see `nll`."""
    return {
        "accuracy": float(correct(probs, labels).mean()),
        "nll": float(nll(probs, labels).mean()),
        "brier": float(brier(probs, labels).mean()),
    }
