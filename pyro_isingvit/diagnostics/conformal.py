"""Conformal prediction sets: sets of classes that hold the label with a given probability, whatever the posterior is.

The guarantee is marginal, over the calibration images and a new image together, and rests on one assumption: that all
of them are exchangeable, given the posterior. Images that the posterior was trained on are not exchangeable with new
ones, nor, strictly, are those that chose its temperature or its logit scale.

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
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from ..data import Images
from ..data.streams import Unlabelled
from ..draws import draw_seed
from ..errors import InputError
from ..models.likelihoods import require_classes
from ..posterior import Posterior

Method = Literal["threshold", "aps", "raps"]
"""Scores by which classes are added to a set, see `conformal`."""

TUNING = 0.2
"""Share of the calibration images on which the penalty of ``"raps"`` is chosen, and which do no more than that."""

PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Penalties of ``"raps"`` to choose from, those of its authors."""


@dataclass(frozen=True)
class Penalty:
    """Regularisation of ``"raps"``: each class beyond the ``free`` most probable ones adds ``strength`` to its score."""

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
        random: whether scores of ``"aps"`` and ``"raps"`` are randomised.
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
            InputError: if the number of classes is not that of the calibration images.
        """
        if probs.dim() != 2 or probs.shape[1] != len(self.thresholds):
            raise InputError(f"probs of shape {tuple(probs.shape)}: need (n, {len(self.thresholds)}), as calibrated")
        return _scores(probs, self.method, self.penalty, self._uniform(len(probs), 1)) <= self.thresholds

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
        """
        labels, sets = labels.cpu(), self.sets(probs)
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

    def _uniform(self, images: int, stream: int) -> Tensor | None:
        """A uniform number for each image; calibration images (stream 0) and others (1) have streams of their own."""
        if not self.random or self.method == "threshold":
            return None
        generator = torch.Generator().manual_seed(draw_seed(self.seed, stream))
        return torch.rand(images, 1, generator=generator, dtype=torch.double)


@dataclass(frozen=True)
class ConformalSets:
    """Prediction sets of a posterior, see `conformal`.

    Attributes:
        posterior: the posterior that predicts.
        rule: what turns its probabilities into sets, with `ConformalRule.coverage_sd`.
        draws: number of draws behind each prediction, as for the calibration images.
    """

    posterior: Posterior
    rule: ConformalRule
    draws: int

    def sets(self, images: Unlabelled) -> Tensor:
        """Whether each class is in the set of each image, (n, classes) booleans.

        Args:
            images: see `Posterior.predict`.
        """
        return self.rule.sets(self._probs(images))

    def evaluate(self, held_out: Images) -> pd.DataFrame:
        """Coverage and size of the sets of labelled images, see `ConformalRule.evaluate`; classes by name if named."""
        table = self.rule.evaluate(self._probs(held_out.images), held_out.labels)
        names = self.posterior.names
        return table.assign(**{"class": [k if k == "all" or not names else names[k] for k in table["class"]]})

    def _probs(self, images: Unlabelled) -> Tensor:
        return self.posterior.predict(images, self.draws, seed=self.rule.seed).probs


def conformal(
    posterior: Posterior,
    calibration: Images,
    coverage: float = 0.9,
    method: Method = "threshold",
    by_class: bool = False,
    penalty: Penalty | None = None,
    random: bool = True,
    draws: int = 50,
    seed: int = 0,
) -> ConformalSets:
    """Prediction sets of a posterior that hold the label of a new image with a given probability.

    The probability is over the calibration images and the new image together. It needs them to be exchangeable, such as
    drawn from the same source: calibration images have to be none of the training images, and should be none of those
    that chose the temperature or the logit scale, such as the validation images of `fit`, since the posterior predicts
    these somewhat better than new ones.

    Args:
        posterior: the posterior that predicts.
        calibration: labelled images.
        coverage: nominal probability, within (0, 1), that a set holds the label.
        method: how classes are scored, from the predicted probability p of each, given those of the others:

            * ``"threshold"``: 1 - p. The smallest sets on average (Sadinle et al. 2019).
            * ``"aps"``: the probability of the classes that are more probable, plus u p, where u is uniform within
              [0, 1], one number an image. Sets are larger where the prediction is unsure (Romano et al. 2020).
            * ``"raps"``: the same plus a penalty for each class beyond the most probable ones, which makes large sets
              smaller (Angelopoulos et al. 2021).
        by_class: whether each class has a threshold of its own, from the calibration images of that class, so that
            the coverage holds for each class (Mondrian). Sets are larger.
        penalty: that of ``"raps"``. None chooses it on a random `TUNING` of the calibration images, from which no
            threshold is then computed: ``free`` classes so that they hold the label at the nominal coverage, and the
            strength among `PENALTIES` of the smallest sets.
        random: whether u is drawn, from a generator of ``seed``. Else it is 1: the same image always has the same set,
            and the coverage can be higher than the nominal one.
        draws: number of draws behind each prediction.
        seed: seed of the draws, of u and of the images on which a penalty is chosen.

    Returns:
        The sets; see `ConformalRule.coverage_sd` for how much their coverage depends on the calibration images.

    Raises:
        InputError: if a value is out of range, labels are not classes, or their number is not that of the network.

    Warns:
        UserWarning: if there are so few calibration images (of a class, if ``by_class``), fewer than
            coverage / (1 - coverage), that its sets hold every class (or always that class).
    """
    require_classes(posterior.model.likelihood, "conformal", "; predict_targets has intervals")
    probs = posterior.predict(calibration.images, draws, seed=seed).probs
    if calibration.classes != probs.shape[1]:
        raise InputError(f"calibration.classes={calibration.classes}: the network has {probs.shape[1]}")
    rule = conformal_rule(probs, calibration.labels, coverage, method, by_class, penalty, random, seed, posterior.names)
    return ConformalSets(posterior, rule, draws)


def conformal_rule(
    probs: Tensor,
    labels: Tensor,
    coverage: float = 0.9,
    method: Method = "threshold",
    by_class: bool = False,
    penalty: Penalty | None = None,
    random: bool = True,
    seed: int = 0,
    names: Sequence[str] = (),
) -> ConformalRule:
    """The rule for prediction sets, from predicted probabilities of calibration images.

    Args:
        probs: (n, classes).
        labels: true classes, (n,).
        coverage, method, by_class, penalty, random, seed: see `conformal`.
        names: names of the classes, for warnings.

    Raises:
        InputError, UserWarning: see `conformal`.
    """
    _check(probs, labels, coverage, method, penalty)
    probs, labels, classes = probs.cpu().double(), labels.cpu(), probs.shape[1]
    if method == "raps" and penalty is None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw_seed(seed, 2)))
        tuning = order[: max(1, round(TUNING * len(labels)))]
        rest = order[len(tuning) :].sort().values
        penalty = _chosen_penalty(probs[tuning], labels[tuning], coverage)
        probs, labels = probs[rest], labels[rest]
    nothing = torch.zeros(classes)
    rule = ConformalRule(coverage, method, nothing, nothing, penalty, random, by_class, seed)
    scores = _scores(probs, method, penalty, rule._uniform(len(labels), 0)).gather(1, labels.unsqueeze(1)).squeeze(1)
    groups = [scores[labels == k] for k in range(classes)] if by_class else [scores]
    thresholds = torch.stack([_quantile(group, coverage) for group in groups]).expand(classes)
    images = torch.tensor([len(group) for group in groups]).expand(classes)
    _warn_of_few(thresholds, images, coverage, by_class, names)
    return replace(rule, thresholds=thresholds.clone(), images=images.clone())


def _scores(probs: Tensor, method: Method, penalty: Penalty | None, uniform: Tensor | None) -> Tensor:
    """Score of each class, (n, classes); see `conformal`. The smaller it is, the sooner the class is in the set.

    Args:
        uniform: u of each image, (n, 1); None for 1.
    """
    probs = probs.cpu().double()
    if method == "threshold":
        return 1 - probs
    ordered, order = probs.sort(1, descending=True, stable=True)
    above = ordered.cumsum(1) - ordered
    scores = above + (ordered if uniform is None else uniform * ordered)
    if penalty is not None:
        rank = torch.arange(1, probs.shape[1] + 1)
        scores = scores + penalty.strength * (rank - penalty.free).clamp_min(0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def _order(coverage: float, images: Tensor) -> Tensor:
    """Which of the scores of the calibration images, in rising order from 1, is the threshold; n + 1 is infinity.

    The coverage counts as the decimal number that it is written as, so that .9 of 10 is exactly 9.
    """
    exact = Fraction(repr(coverage))
    return torch.tensor([math.ceil((n + 1) * exact) for n in images.tolist()], dtype=torch.double)


def _quantile(scores: Tensor, coverage: float) -> Tensor:
    """The ceil((n + 1) coverage)-th smallest of n scores; infinity if there are fewer."""
    place = int(_order(coverage, torch.tensor([len(scores)])))
    return scores.kthvalue(place).values if place <= len(scores) else torch.tensor(math.inf, dtype=torch.double)


def _chosen_penalty(probs: Tensor, labels: Tensor, coverage: float) -> Penalty:
    """The penalty of the smallest sets on tuning images, see `conformal`; scores are not random here."""
    own = probs.gather(1, labels.unsqueeze(1))
    rank = (probs >= own).sum(1).double()
    most = _quantile(rank, coverage)
    free = int(most) if most.isfinite() else probs.shape[1]
    sizes = {}
    for strength in PENALTIES:
        scores = _scores(probs, "raps", Penalty(strength, free), None)
        threshold = _quantile(scores.gather(1, labels.unsqueeze(1)).squeeze(1), coverage)
        sizes[strength] = int((scores <= threshold).sum())
    return Penalty(min(sizes, key=sizes.__getitem__), free)


def _check(probs: Tensor, labels: Tensor, coverage: float, method: str, penalty: Penalty | None) -> None:
    if isinstance(coverage, bool) or not isinstance(coverage, float) or not 0 < coverage < 1:
        raise InputError(f"coverage={coverage!r}: must be a number strictly between 0 and 1, e.g. 0.9")
    if method not in get_args(Method):
        raise InputError(f"method={method!r}: choose one of {list(get_args(Method))}")
    if penalty is not None and method != "raps":
        raise InputError(f"penalty={penalty} with method={method!r}: only 'raps' has one; leave it out")
    if probs.dim() != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise InputError(
            f"probs of shape {tuple(probs.shape)}, labels of shape {tuple(labels.shape)}: need (n, classes) and (n,), "
            "with at least one calibration image"
        )


def _warn_of_few(thresholds: Tensor, images: Tensor, coverage: float, by_class: bool, names: Sequence[str]) -> None:
    exact = Fraction(repr(coverage))
    least = math.ceil(exact / (1 - exact))
    few = [k for k in range(len(thresholds)) if math.isinf(float(thresholds[k]))]
    if not few:
        return
    if by_class:
        named = ", ".join(f"{names[k] if names else k} ({int(images[k])})" for k in few)
        what = f"classes {named} have fewer calibration images than the {least}"
        effect = "these classes are in every set"
    else:
        what = f"{int(images[0])} calibration images are fewer than the {least}"
        effect = "every class is in every set"
    warnings.warn(
        f"calibration: {what} that coverage={coverage} needs, so that {effect}; give more images, or a lower coverage",
        UserWarning,
        stacklevel=3,
    )
