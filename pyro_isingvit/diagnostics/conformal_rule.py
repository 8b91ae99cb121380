"""The rules of conformal prediction, from predicted probabilities to sets of classes; see `conformal`.

References:
    Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005 (split conformal, by class: Mondrian).
    Vovk, "Conditional Validity of Inductive Conformal Predictors", ACML 2012 (the Beta law of the coverage).
    Sadinle, Lei & Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 2019.
    Romano, Sesia & Candès, "Classification with Valid and Adaptive Coverage", NeurIPS 2020 (APS).
    Angelopoulos, Bates, Jordan & Malik, "Uncertainty Sets for Image Classifiers using Conformal Prediction", ICLR 2021
        (RAPS).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..draws import draw_seed
from ..errors import InputError, check_fraction, kind_of

Method = Literal["threshold", "aps", "raps"]
"""Scores by which classes are added to a set, see `conformal`."""

SUMS = 0.02
"""Largest distance of a sum of probabilities from 1."""

TUNING = 0.2
"""Share of the calibration images on which the penalty of ``"raps"`` is chosen, and which do no more than that."""

PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Penalties of ``"raps"`` to choose from, those of its authors."""

CALIBRATION, NEW, TUNED = -1, -2, -3
"""Streams of random numbers: of calibration images, of new images, and of the choice of those that choose a penalty.
Negative, as the draws of a posterior are counted from 0."""


@dataclass(frozen=True)
class Penalty:
    """Penalty of ``"raps"``, ``strength`` for each rank of a class beyond the ``free`` most probable ones.

    Raises:
        InputError: if a value is out of range.
    """

    strength: float
    free: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise InputError(f"strength={self.strength}: must be a number from 0, e.g. 0.01")
        if isinstance(self.free, bool) or not isinstance(self.free, int) or self.free < 0:
            raise InputError(f"free={self.free!r}: must be a number of classes, as an integer from 0, e.g. 5")


@dataclass(frozen=True)
class ConformalRule:
    """A rule that turns predicted probabilities into sets of classes; `conformal_rule` makes one.

    A class is in the set if its score is at most its threshold.

    Attributes:
        coverage: the nominal coverage.
        method: how classes are scored.
        thresholds: threshold of the score of each class, (classes,), infinite where there are too few images.
        images: number of calibration images behind each threshold, (classes,).
        penalty: that of ``"raps"``; None for other methods.
        random: whether scores of ``"aps"`` and ``"raps"`` are random.
        by_class: whether each class has a threshold of its own.
        seed: seed of the random scores.
    """

    coverage: float
    method: Method
    thresholds: Tensor
    images: Tensor
    penalty: Penalty | None
    random: bool
    by_class: bool
    seed: int

    def sets(self, probs: Tensor) -> Tensor:
        """Whether each class is in the set of each image, (n, classes) booleans.

        Args:
            probs: predicted probabilities, (n, classes).

        Raises:
            InputError: if these are no probabilities, or not of as many classes as those of the calibration images.
        """
        probs = _probabilities(probs)
        if probs.shape[1] != len(self.thresholds):
            raise InputError(f"probs of shape {tuple(probs.shape)}: need (n, {len(self.thresholds)}), as calibrated")
        uniform = _uniform(len(probs), self.seed, NEW, self.random)
        return _scores(probs, self.method, self.penalty, uniform) <= self.thresholds

    def evaluate(self, probs: Tensor, labels: Tensor) -> pd.DataFrame:
        """Coverage and size of the sets of labelled images, which should be none of the calibration images.

        Args:
            probs: predicted probabilities, (n, classes).
            labels: true classes, (n,).

        Returns:
            A first row for all images, whose ``class`` is ``"all"``, and one for each class that is among the labels,
            with the number of ``images``; ``coverage``, the share of the images whose set holds the label; ``size``,
            the mean number of classes in a set; and ``empty`` and ``single``, the shares of the images whose sets hold
            no class and one.

        Raises:
            InputError: see `sets`; also if the labels are not one class for each row.
        """
        sets = self.sets(probs)
        labels = _classes(labels, sets)
        size = sets.sum(1)
        frame = pd.DataFrame(
            {
                "class": labels.numpy(),
                "coverage": sets.gather(1, labels.unsqueeze(1)).squeeze(1).double().numpy(),
                "size": size.double().numpy(),
                "empty": (size == 0).double().numpy(),
                "single": (size == 1).double().numpy(),
            }
        )
        names = ["coverage", "size", "empty", "single"]
        rows = [{"class": "all", "images": len(frame)} | frame[names].mean().to_dict()]
        for k, own in frame.groupby("class"):
            rows.append({"class": k, "images": len(own)} | own[names].mean().to_dict())
        return pd.DataFrame(rows)

    @property
    def expected_coverage(self) -> Tensor:
        """Mean of the coverage over sets of calibration images, (classes,); the same for all classes, or `by_class`.

        It is exact for scores without ties, and a lower bound with ties.
        """
        return _order(self.coverage, self.images) / (self.images + 1).double()

    @property
    def coverage_sd(self) -> Tensor:
        """Standard deviation of the coverage over sets of calibration images, (classes,).

        With n calibration images, of whose scores the l-th smallest is the threshold, the coverage of new images has
        the distribution Beta(l, n + 1 - l). Coverage on few test images varies more, as these are drawn too.
        """
        n, mean = self.images.double(), self.expected_coverage
        return (mean * (1 - mean) / (n + 2)).sqrt()


def conformal_rule(
    probs: Tensor,
    labels: Tensor,
    coverage: float = 0.9,
    method: Method = "threshold",
    by_class: bool = False,
    penalty: Penalty | None = None,
    random: bool = True,
    seed: int = 0,
) -> ConformalRule:
    """The rule for prediction sets, from predicted probabilities of calibration images.

    Args:
        probs: (n, classes), a tensor or an array.
        labels: true classes, (n,), a tensor or an array.
        coverage, method, by_class, penalty, random, seed: see `conformal`.

    Raises:
        InputError, UserWarning: see `conformal`.
    """
    rule = rule_of(probs, labels, coverage, method, by_class, penalty, random, seed)
    if few := shortage(rule):
        warnings.warn(few, UserWarning, stacklevel=2)
    return rule


def rule_of(
    probs: Tensor,
    labels: Tensor,
    coverage: float,
    method: Method,
    by_class: bool,
    penalty: Penalty | None,
    random: bool,
    seed: int,
) -> ConformalRule:
    """See `conformal_rule`; it does not warn."""
    _check(coverage, method, penalty, seed)
    probs = _probabilities(probs)
    labels, classes, coverage = _classes(labels, probs), probs.shape[1], float(coverage)
    uniform = _uniform(len(labels), seed, CALIBRATION, random)
    if method == "raps" and penalty is None:
        order = torch.randperm(len(labels), generator=_generator(seed, TUNED))
        tuning, rest = order.split([first := max(1, round(TUNING * len(labels))), len(labels) - first])
        penalty = _chosen_penalty(probs[tuning], labels[tuning], uniform[tuning], coverage)
        probs, labels, uniform = probs[rest], labels[rest], uniform[rest]
    scores = _scores(probs, method, penalty, uniform).gather(1, labels.unsqueeze(1)).squeeze(1)
    groups = [scores[labels == k] for k in range(classes)] if by_class else [scores]
    thresholds = torch.stack([conformal_quantile(group, coverage) for group in groups]).repeat(classes // len(groups))
    images = torch.tensor([len(group) for group in groups]).repeat(classes // len(groups))
    return ConformalRule(coverage, method, thresholds, images, penalty, random, by_class, seed)


def shortage(rule: ConformalRule, names: Sequence[str] = ()) -> str:
    """What follows from there being too few calibration images, in words; empty if there are enough.

    Args:
        rule: the rule.
        names: names of the classes.
    """
    exact = Fraction(repr(rule.coverage))
    least = math.ceil(exact / (1 - exact))
    few = rule.thresholds.isinf().nonzero().flatten().tolist()
    if not few:
        return ""
    need, fix = f"{least} that coverage={rule.coverage} needs", "give more images, or a lower coverage"
    if rule.by_class:
        named = ", ".join(f"{names[k] if names else k} ({int(rule.images[k])})" for k in few)
        return f"calibration: classes with fewer images than the {need} are in every set: {named}; {fix}"
    return f"calibration: {int(rule.images[0])} images are fewer than the {need}: every class is in every set; {fix}"


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(draw_seed(seed, stream))


def _uniform(images: int, seed: int, stream: int, random: bool) -> Tensor:
    """A uniform number for each image, or 0, (n, 1)."""
    if not random:
        return torch.zeros(images, 1, dtype=torch.double)
    return torch.rand(images, 1, generator=_generator(seed, stream), dtype=torch.double)


def _scores(probs: Tensor, method: Method, penalty: Penalty | None, uniform: Tensor) -> Tensor:
    """Score of each class, (n, classes); see `conformal`. The smaller it is, the sooner the class is in the set.

    Args:
        uniform: u of each image, (n, 1).
    """
    if method == "threshold":
        return 1 - probs
    ordered, order = probs.sort(dim=1, descending=True, stable=True)
    scores = ordered.cumsum(1) - ordered + uniform * ordered
    if penalty is not None:
        rank = torch.arange(1, probs.shape[1] + 1, dtype=torch.double)
        scores = scores + penalty.strength * (rank - penalty.free).clamp_min(0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def _order(coverage: float, images: Tensor) -> Tensor:
    """Which of the scores of the calibration images, in rising order from 1, is the threshold; n + 1 is infinity.

    The coverage counts as the decimal number that it is written as, so that .9 of 10 is exactly 9.
    """
    exact = Fraction(repr(coverage))
    return torch.tensor([math.ceil((n + 1) * exact) for n in images.tolist()], dtype=torch.double)


def conformal_quantile(scores: Tensor, coverage: float) -> Tensor:
    """The ceil((n + 1) coverage)-th smallest of n scores; infinity if there are fewer."""
    place = int(_order(coverage, torch.tensor([len(scores)])))
    return scores.kthvalue(place).values if place <= len(scores) else torch.tensor(math.inf, dtype=torch.double)


def _chosen_penalty(probs: Tensor, labels: Tensor, uniform: Tensor, coverage: float) -> Penalty:
    """The penalty of the smallest sets on tuning images, see `conformal`."""
    own = probs.gather(1, labels.unsqueeze(1))
    rank = (probs >= own).sum(1).double()
    most = conformal_quantile(rank, coverage)
    free = int(most) if most.isfinite() else probs.shape[1]
    sizes = {}
    for strength in PENALTIES:
        scores = _scores(probs, "raps", Penalty(strength, free), uniform)
        threshold = conformal_quantile(scores.gather(1, labels.unsqueeze(1)).squeeze(1), coverage)
        sizes[strength] = int((scores <= threshold).sum())
    return Penalty(min(sizes, key=sizes.__getitem__), free)


def _check(coverage: float, method: str, penalty: Penalty | None, seed: int) -> None:
    check_fraction("coverage", coverage, "0.9")
    if method not in get_args(Method):
        raise InputError(f"method={method!r}: choose one of {list(get_args(Method))}")
    if penalty is not None and not isinstance(penalty, Penalty):
        raise InputError(f"penalty={penalty!r}: give a Penalty(strength, free), or None to choose one")
    if penalty is not None and method != "raps":
        raise InputError(f"penalty={penalty} with method={method!r}: only 'raps' has one; leave it out")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed={seed!r}: must be an integer")


def _probabilities(given: Any) -> Tensor:
    """Probabilities (n, classes) in double precision, on the CPU."""
    probs = _tensor("probs", given).double()
    if probs.dim() != 2:
        raise InputError(f"probs of shape {tuple(probs.shape)}: need (n, classes)")
    within = (probs >= 0) & (probs <= 1 + SUMS) & ((probs.sum(1, keepdim=True) - 1).abs() <= SUMS)  # false for NaN
    if not bool(within.all()):
        where = int((~within).any(1).nonzero()[0])
        raise InputError(
            f"probs[{where}]={[round(p, 3) for p in probs[where].tolist()[:5]]}...: must be probabilities that sum to "
            "1; give softmax(-1) of logits"
        )
    return probs


def _classes(given: Any, probs: Tensor) -> Tensor:
    """Labels (n,) of the rows of probabilities, on the CPU."""
    labels = _tensor("labels", given)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels of type {labels.dtype}: give classes as integers, e.g. labels.long()")
    if labels.shape != probs.shape[:1] or not len(labels):
        raise InputError(
            f"probs of shape {tuple(probs.shape)}, labels of shape {tuple(labels.shape)}: need (n, classes) and (n,), "
            "with at least one image"
        )
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        raise InputError(f"labels within [{labels.min()}, {labels.max()}]: must lie within [0, {probs.shape[1]})")
    return labels.long()


def _tensor(name: str, given: Any) -> Tensor:
    try:
        return given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError):
        raise InputError(f"{name}={kind_of(given)}: give a tensor or an array of numbers") from None
