"""Conformal prediction sets: sets of classes that hold the label with a given probability, whatever the posterior is.

The guarantee is marginal, over the calibration images and a new image together, and rests on one assumption: that all
of them are exchangeable, given the posterior. Images that the posterior was trained on are not exchangeable with new
ones, nor, strictly, are those that chose its temperature or its logit scale. References are in `conformal_rule`.
"""

import warnings
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from ..data import Images
from ..data.images import check_images
from ..data.streams import Unlabelled
from ..errors import InputError
from ..models.likelihoods import require_classes
from ..posterior import Posterior
from .conformal_rule import ConformalRule, Method, Penalty, rule_of, shortage


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
        check_images("held_out", held_out)
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
        penalty: that of ``"raps"``. None chooses it on a random fifth of the calibration images, from which no
            threshold is then computed: ``free`` classes so that they hold the label at the nominal coverage, and the
            strength of the smallest sets.
        random: whether u is drawn, from a generator of ``seed``; it then depends on the place of an image among those
            that are given together, and sets may be empty. Else it is 0: the set of an image depends on nothing but its
            prediction and, without a penalty, always holds the most probable class, but the coverage can be higher than
            the nominal one, as many scores tie at 0.
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
    check_images("calibration", calibration)
    probs = posterior.predict(calibration.images, draws, seed=seed).probs
    if calibration.classes != probs.shape[1]:
        raise InputError(f"calibration.classes={calibration.classes}: the network has {probs.shape[1]}")
    rule = rule_of(probs, calibration.labels, coverage, method, by_class, penalty, random, seed)
    if few := shortage(rule, posterior.names):
        warnings.warn(few, UserWarning, stacklevel=2)
    return ConformalSets(posterior, rule, draws)
