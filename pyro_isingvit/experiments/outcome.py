"""What a method of a study predicts, typed: who predicts, the probabilities, and the price."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class Predictor:
    """What makes the predictions of an outcome.

    Attributes:
        method: its name, with its own setting: ``dropout 0.1``.
        median: whether it is the median-probability model of the method's posterior, one network.
        scaled: whether its logits are scaled to suit the validation images.
        curve: whether it is one of several from one fit or training, of different densities.
    """

    method: str
    median: bool = False
    scaled: bool = False
    curve: bool = False

    def __str__(self) -> str:
        """As tables name it. Of a curve all are scaled, so that it goes without saying."""
        parts = [self.method, *(["median network"] if self.median else [])]
        return ", ".join([*parts, *(["temperature-scaled"] if self.scaled and not self.curve else [])])


@dataclass(frozen=True)
class Outcome:
    """What a method predicts, and at what price.

    Attributes:
        predictor: what predicts.
        probs: of the test images, (n, classes).
        validation_nll: mean NLL of the validation images, in nats: what choices may be made by.
        density: share of the weights that is kept (in the median-probability model, for ours).
        expected_density: mean inclusion probability: the share that is kept in each network that predictions average
            over.
        temperature: of the posterior; 1 where there is none.
        seconds: of training.
        mark: of a path's point, what `path_table` marks it with: ``least_nll``, ``sparsest``, or both.
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
        """All but the probabilities, as JSON can hold it."""
        return {name: value for name, value in asdict(replace(self, probs=Tensor())).items() if name != "probs"}

    @classmethod
    def of(cls, facts: Mapping[str, Any], probs: Tensor) -> Self:
        """The inverse of `facts`."""
        return cls(**{**facts, "predictor": Predictor(**facts["predictor"])}, probs=probs)
