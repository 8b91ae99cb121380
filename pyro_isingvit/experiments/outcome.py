"""Outcomes of the methods of a study: what predicts, its probabilities, and what it costs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class Predictor:
    """What makes the predictions of an outcome.

    Attributes:
        method: name of the method, with its own setting: ``dropout 0.1``.
        median: whether it is the median-probability model of the method's posterior, a single network.
        scaled: whether its logits are scaled to suit the validation images.
        curve: whether it is one of several predictors of different densities from one fit.
    """

    method: str
    median: bool = False
    scaled: bool = False
    curve: bool = False

    def __str__(self) -> str:
        """The name in tables. All predictors of a curve are scaled, so their names do not say so."""
        parts = [self.method, *(["median network"] if self.median else [])]
        return ", ".join([*parts, *(["temperature-scaled"] if self.scaled and not self.curve else [])])


@dataclass(frozen=True)
class Outcome:
    """The predictions of a method, and what they cost.

    Attributes:
        predictor: what predicts.
        probs: probabilities of the test images, (n, classes).
        validation_nll: mean NLL of the validation images, in nats, by which settings may be chosen.
        density: share of the weights that is kept; for our method, in the median-probability model.
        expected_density: mean inclusion probability, which is the expected share that is kept in each of the networks
            that predictions average over.
        temperature: temperature of the posterior; 1 for methods without one.
        seconds: seconds of training.
        mark: for a point of a path, its marks in `path_table`: ``least_nll``, ``sparsest``, or both. For a method that
            chooses a setting of its own on the validation images, that setting.
    """

    predictor: Predictor
    probs: Tensor
    validation_nll: float
    density: float
    expected_density: float
    temperature: float
    seconds: float
    mark: str = ""

    def facts(self) -> dict[str, Any]:
        """Everything except the probabilities, as JSON can hold it."""
        return {name: value for name, value in asdict(replace(self, probs=Tensor())).items() if name != "probs"}

    @classmethod
    def of(cls, facts: Mapping[str, Any], probs: Tensor) -> Self:
        """The inverse of `facts`."""
        return cls(**{**facts, "predictor": Predictor(**facts["predictor"])}, probs=probs)
