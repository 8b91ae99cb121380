"""Conformal intervals of numbers: predictive intervals, moved so that they hold the number with a given probability.

References:
    Romano, Patterson & Candès, "Conformalized Quantile Regression", NeurIPS 2019.
"""

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..data import Images
from ..data.images import check_images
from ..data.streams import Unlabelled
from ..errors import InputError, check_fraction
from ..posterior import Posterior
from ..targets import TargetPrediction
from .conformal_rule import conformal_quantile


@dataclass(frozen=True)
class ConformalIntervals:
    """Intervals of a posterior of numbers, see `conformal_intervals`.

    Attributes:
        posterior: the posterior that predicts.
        margin: by how much the interval of each number is wider on both sides than the posterior's, (k,), in units of
            the labels; negative where it is narrower.
        coverage: nominal probability that an interval holds the number.
        draws, seed: of the predictions.
    """

    posterior: Posterior
    margin: Tensor
    coverage: float
    draws: int
    seed: int

    def intervals(self, images: Unlabelled) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (n, k); where a negative margin leaves nothing, both are in the middle.

        Args:
            images: see `Posterior.predict`.
        """
        found = _predicted(self.posterior, images, self.coverage, self.draws, self.seed)
        lower, upper = found.lower - self.margin, found.upper + self.margin
        middle = (lower + upper) / 2
        return torch.minimum(lower, middle), torch.maximum(upper, middle)

    def evaluate(self, held_out: Images) -> dict[str, float]:
        """``coverage``, the share of the numbers that are within their intervals, and ``width``, the mean width."""
        check_images("held_out", held_out)
        lower, upper = self.intervals(held_out.images)
        labels = held_out.labels.cpu()
        inside = (labels >= lower) & (labels <= upper)
        return {"coverage": float(inside.float().mean()), "width": float((upper - lower).mean())}


def conformal_intervals(
    posterior: Posterior, calibration: Images, coverage: float = 0.9, draws: int = 50, seed: int = 0
) -> ConformalIntervals:
    """Intervals that hold the number of a new image with a given probability, whatever the posterior is worth.

    The margin of each number is the l-th smallest, with l = ceil((n + 1) coverage), of how far the numbers of n
    calibration images are outside of their predictive intervals, negative within. As for `conformal`, the probability
    is over the calibration images and the new image together, which have to be exchangeable: calibration images are
    none of the training images, nor of those that chose the temperature.

    Args:
        posterior: a posterior of numbers, see `Regression`.
        calibration: labelled images.
        coverage: nominal probability, within (0, 1).
        draws, seed: of the predictions.

    Raises:
        InputError: if a value is out of range, or labels are not numbers, or not as many as those of the fit.

    Warns:
        UserWarning: if there are fewer than coverage / (1 - coverage) calibration images: intervals are then unbounded.
    """
    likelihood = posterior.model.likelihood
    if likelihood.kind != "numbers":
        raise InputError(
            f"conformal_intervals: of numbers, and labels are {likelihood.kind}; use conformal for classes"
        )
    check_images("calibration", calibration)
    check_fraction("coverage", coverage, "0.9")
    if calibration.kind != "numbers":
        raise InputError(f"calibration.labels: {calibration.kind}; give numbers, as floats")
    found = _predicted(posterior, calibration.images, coverage, draws, seed)
    labels = calibration.labels.cpu()
    if labels.shape != found.mean.shape:
        raise InputError(f"calibration.labels of shape {tuple(labels.shape)}: need {tuple(found.mean.shape)}")
    outside = torch.maximum(found.lower - labels, labels - found.upper).double()
    margin = torch.stack([conformal_quantile(column, coverage) for column in outside.unbind(1)])
    if not bool(margin.isfinite().all()):
        nominal = Fraction(repr(coverage))
        warnings.warn(
            f"calibration: {len(labels)} images are too few for coverage={coverage}: intervals are unbounded; give at "
            f"least {math.ceil(nominal / (1 - nominal))}",
            UserWarning,
            stacklevel=2,
        )
    return ConformalIntervals(posterior, margin.float(), coverage, draws, seed)


def _predicted(posterior: Posterior, images: Unlabelled, coverage: float, draws: int, seed: int) -> TargetPrediction:
    return posterior.predict_targets(images, draws, coverage, seed)
