"""Predictions of shifted images, at five strengths, and of images of another distribution.

References:
    Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", ICLR 2017.
    Hendrycks, Mazeika & Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019 (FPR at 95 % TPR).
    Ovadia et al., "Can You Trust Your Model's Uncertainty?", NeurIPS 2019.
"""

import math
from collections.abc import Callable, Mapping

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_specificity_at_sensitivity,
)
from torchvision.transforms.v2.functional import gaussian_blur

from ..data import Images
from ..draws import seeded
from ..errors import InputError
from ..network.stem import as_floats
from ..posterior import Posterior
from ..prediction import Prediction
from .calibration import metrics

STRENGTHS = (1, 2, 3, 4, 5)

TRUE_POSITIVES = 0.95
"""Share of the outside images that has to be recognised where the false-positive rate is read off."""

Shift = Callable[[Tensor, int], Tensor]
"""A function of images (n, channels, height, width) within [0, 1] and a strength (see `STRENGTHS`) that returns shifted
images of the same shape."""


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images counterclockwise about their centre. Pixels from outside the image are black."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], device=images.device)
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def noise(images: Tensor, scale: float, seed: int = 0) -> Tensor:
    """Add Gaussian noise of standard deviation ``scale`` to images, and clamp the result to [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return (images + scale * torch.randn(images.shape, generator=generator).to(images.device)).clamp(0, 1)


def blur(images: Tensor, width: float) -> Tensor:
    """Blur images by a Gaussian whose standard deviation is ``width`` times their shorter side."""
    sigma = width * min(images.shape[-2:])
    size = 2 * max(1, min(math.ceil(3 * sigma), (min(images.shape[-2:]) - 1) // 2)) + 1
    return gaussian_blur(images, [size, size], [sigma, sigma])


def static(images: Tensor, seed: int = 0) -> Tensor:
    """Images of the same shape whose pixels are independent and uniform within [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images.shape, generator=generator).to(images.device)


SHIFTS: Mapping[str, Shift] = {
    "rotation": lambda images, strength: rotate(images, 15.0 * strength),
    "noise": lambda images, strength: noise(images, 0.1 * strength),
    "blur": lambda images, strength: blur(images, 0.025 * strength),
}
"""Shifts by name: rotation by 15 to 75 degrees, noise of standard deviation 0.1 to 0.5, and blur with a standard
deviation of 0.025 to 0.125 of the shorter side."""


def under_shift(
    posterior: Posterior, data: Images, shifts: Mapping[str, Shift] = SHIFTS, draws: int = 50, seed: int = 0
) -> pd.DataFrame:
    """Scores of the posterior predictive on images that are shifted with increasing strength.

    Args:
        posterior: posterior to examine.
        data: labelled images.
        shifts: shifts by name. Shifted images are clamped to [0, 1].
        draws, seed: number and seed of the draws from the posterior.

    Returns:
        One row for each shift and strength, with columns ``shift``, ``strength`` (0 for the images as they are),
        ``accuracy``, ``nll`` (in nats), ``ece``, and ``entropy`` (mean, in nats).

    Raises:
        InputError: if a shift changes the shape of the images.
    """
    rows = []
    plain = posterior.predict(data.images, draws, seed=seed)
    for name, shift in shifts.items():
        for strength in (0, *STRENGTHS):
            prediction = plain
            if strength:
                with seeded(data.images.device, seed):
                    images = shift(as_floats(data.images), strength)
                if images.shape != data.images.shape:
                    raise InputError(
                        f"shifts[{name!r}] made {tuple(images.shape)} of {tuple(data.images.shape)}: keep the shape"
                    )
                prediction = posterior.predict(images.clamp(0, 1), draws, seed=seed)
            scores = metrics(prediction.probs, data.labels.cpu())
            rows.append(
                {"shift": name, "strength": strength}
                | {key: scores[key] for key in ("accuracy", "nll", "ece")}
                | {"entropy": float(prediction.entropy.mean())}
            )
    return pd.DataFrame(rows)


def separation(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """How well a score separates images of another distribution, the positive class, from those of the data.

    Args:
        inside, outside: scores (n,) and (m,), such as `Prediction.entropy`, which should be higher outside.

    Returns:
        ``auroc``, the probability that an outside image scores higher than an inside one, ties counting half;
        ``aupr``, the average precision; and ``fpr95``, the false-positive rate at 95 % true positives: the share of the
        inside images that score at least as high as the highest threshold which 95 % of the outside images reach.
    """
    ranked = _ranked(inside, outside)
    return {
        "auroc": float(binary_auroc(*ranked)),
        "aupr": float(binary_average_precision(*ranked)),
        "fpr95": 1 - float(binary_specificity_at_sensitivity(*ranked, TRUE_POSITIVES)[0]),
    }


def outside_scores(inside: Prediction, outside: Prediction) -> pd.DataFrame:
    """How well the uncertainty of predictions separates images of another distribution from those of the data.

    Args:
        inside, outside: predictions of images from the distribution of the data, and from another one.

    Returns:
        One row for each ``score`` (``entropy``, ``mutual_information``, and ``confidence``, which is one minus the
        largest probability), with columns ``auroc``, ``aupr`` and ``fpr95``, see `separation`. A score that is the
        same for all images has an AUROC of one half and an FPR of 1.
    """
    rows = []
    for name, score in (
        ("entropy", lambda p: p.entropy),
        ("mutual_information", lambda p: p.mutual_information),
        ("confidence", lambda p: 1 - p.probs.max(-1).values),
    ):
        rows.append({"score": name} | separation(score(inside), score(outside)))
    return pd.DataFrame(rows)


def _ranked(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of scores within [0, 1], and 1 for those of outside images, else 0.

    Ranks, since torchmetrics applies a sigmoid to scores outside [0, 1], which would create ties.
    """
    ranks = torch.unique(torch.cat([inside, outside]).double(), return_inverse=True)[1].double()
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    return ranks / ranks.max().clamp_min(1), truth
