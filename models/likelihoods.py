"""What labels are, given the outputs of the network: classes, numbers, or several labels for each image."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.errors import InputError, check_positive
from pyro_isingvit.settings import Described

UNSETTLED = 3.0
"""Ratio of a learned scale and the errors on training images from which on it is said not to have settled."""

FAR = 20.0
"""How far numbers may be from mean 0 and standard deviation 1, as a factor, before a network is not fitted to them."""


class Likelihood(Described, nn.Module):
    """The distribution of the label of an image given the network's outputs (n, outputs).

    Subclasses implement `distribution`. Like a `Prior`, they keep their constructor's arguments as attributes of the
    same names; `nn.Parameter`s are learned without a prior.

    Attributes:
        kind: kind of the labels, as `Images.kind` says: ``"classes"``, ``"numbers"`` or ``"several labels"``.
    """

    kind = "classes"

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        """Distribution of the labels, batch shape (n,), given outputs (n, outputs)."""
        raise NotImplementedError(f"{type(self).__name__} must implement distribution(outputs)")

    def outputs(self, labels: int) -> int:
        """Number of outputs that the network needs for a number of classes, of numbers, or of labels of an image."""
        return labels

    def check_labels(self, name: str, labels: Tensor, number: int) -> None:
        """Check the labels of training images.

        Args:
            name: what to call the images in messages.
            labels: labels of all of them, or of some.
            number: number of classes, of numbers, or of labels of an image.

        Raises:
            InputError: if they are not such as it describes.
        """

    def unsettled(self, outputs: Tensor, labels: Tensor) -> str:
        """What of it training has not settled, and what to do, in words; empty if nothing.

        Args:
            outputs: of the median network for some training images, (n, outputs).
            labels: theirs.
        """
        return ""

    def counts(self, labels: Tensor | None) -> Tensor | None:
        """How much each image counts, (n,); None if all count once."""
        return None

    def log_prob(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Log-likelihood of each label, in nats, times how much it counts: (..., n, outputs), (n, ...) -> (..., n)."""
        each = self.distribution(outputs).log_prob(self._observed(labels, outputs))
        counts = self.counts(labels)
        return each if counts is None else each * counts

    def observe(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Sample, or observe, ``label``; called within the plate over the data."""
        counts = self.counts(labels)
        context: AbstractContextManager[Any] = nullcontext() if counts is None else poutine.scale(scale=counts)
        with context:
            obs = None if labels is None else self._observed(labels, outputs)
            pyro.sample("label", self.distribution(outputs), obs=obs)

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Scores of the outputs of one network, means over the images: ``nll``, in nats, and an error of points."""
        nll = -float(self.distribution(outputs).log_prob(self._observed(labels, outputs)).mean())
        return {"nll": nll} | self.errors(self.mean(outputs), labels)

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of the labels: (..., n, outputs) -> (..., n, labels)."""
        return self.distribution(outputs).mean

    def errors(self, means: Tensor, labels: Tensor) -> dict[str, float]:
        """Errors of predicted means (n, labels) by name: ``accuracy`` of classes and labels, ``rmse`` of numbers."""
        if self.kind == "numbers":
            return {"rmse": float((means - labels).square().mean().sqrt())}
        right = means.argmax(-1) == labels if self.kind == "classes" else (means >= 0.5) == labels.bool()
        return {"accuracy": float(right.float().mean())}

    def _observed(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Labels as densities take them: classes as integers, others as floats."""
        return labels if self.kind == "classes" else labels.to(outputs.dtype)


class Classes(Likelihood):
    """``label ~ Categorical(logits=outputs)``: one class an image.

    Args:
        weights: how much an image of each class counts, positive, one for each class; all count once if None. Weighted
            images make a power likelihood: a class that counts twice counts as if each of its images were there twice.

    Raises:
        InputError: if a weight is not positive.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        for weight in weights or ():
            check_positive("weights", weight, "(1.0, 2.0)")
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return Categorical(logits=outputs, validate_args=False)

    def check_labels(self, name: str, labels: Tensor, number: int) -> None:
        if self.weights is not None and len(self.weights) != number:
            raise InputError(f"weights={self.weights}: {name} has {number} classes; give one weight for each")

    def counts(self, labels: Tensor | None) -> Tensor | None:
        if self.weights is None or labels is None:
            return None
        return torch.tensor(self.weights, device=labels.device)[labels]

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)


class Regression(Likelihood):
    """``label ~ Normal(mean, scale)`` for each of some numbers of an image.

    The outputs of the network are the means; then, if it is heteroscedastic, the logarithms of the scales. Otherwise
    the scale of each number is a parameter, learned without a prior. At a temperature below 1 it is that of the noise
    about an overfitted mean, and too small. Its logarithm moves by about the learning rate a step: if it has not come
    near the errors at the end, `fit` warns.

    Args:
        numbers: how many numbers an image has.
        heteroscedastic: whether the network predicts the scales.
        initial_scale: scale at the start of training, in units of the labels.

    A network starts with outputs near 0, and learns numbers of about 1: bring labels to mean 0 and standard deviation
    1. `fit` refuses those that are far from it.

    Raises:
        InputError: if a value is out of range.
    """

    kind = "numbers"

    def __init__(self, numbers: int = 1, heteroscedastic: bool = False, initial_scale: float = 1.0) -> None:
        super().__init__()
        if numbers < 1:
            raise InputError(f"numbers={numbers}: an image has at least one number to predict")
        check_positive("initial_scale", initial_scale, "1.0")
        self.numbers, self.heteroscedastic, self.initial_scale = numbers, heteroscedastic, initial_scale
        self.log_scale = None if heteroscedastic else nn.Parameter(torch.full((numbers,), math.log(initial_scale)))

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        if self.log_scale is not None:
            return Normal(outputs, self.log_scale.exp(), validate_args=False).to_event(1)
        mean, log_scale = outputs.chunk(2, -1)
        return Normal(mean, self.initial_scale * log_scale.exp(), validate_args=False).to_event(1)

    def outputs(self, labels: int) -> int:
        return labels * (1 + self.heteroscedastic)

    def unsettled(self, outputs: Tensor, labels: Tensor) -> str:
        if self.log_scale is None:
            return ""
        errors = (outputs - labels).square().mean(0).sqrt()
        scales = self.log_scale.detach().exp().to(errors.device)
        k = int((scales / errors).log().abs().argmax())
        if 1 / UNSETTLED < scales[k] / errors[k] < UNSETTLED:
            return ""
        return (
            f"the scale of number {k} has come to {scales[k]:.2g}, and errors on training images are {errors[k]:.2g}: "
            f"start at initial_scale={errors[k]:.2g}, take more steps, or FitConfig(rates={{'*log_scale': 10.0}})"
        )

    def check_labels(self, name: str, labels: Tensor, number: int) -> None:
        spread, mean = labels.double().std(0, correction=0), labels.double().mean(0)
        far = (spread < 1 / FAR) | (spread > FAR) | (mean.abs() > FAR)
        if len(labels) > 1 and bool(far.any()):
            k = int(far.nonzero()[0])
            fix = f"give (labels - {mean[k]:.3g}) / {spread[k]:.3g}" if spread[k] > 0 else "it tells no images apart"
            raise InputError(
                f"{name}.labels: number {k} has mean {mean[k]:.3g} and standard deviation {spread[k]:.3g}, and a "
                f"network learns numbers of about 1; {fix}"
            )


class SeveralLabels(Likelihood):
    """``label ~ Bernoulli(logits=outputs)``, independently for each of some labels that an image may have."""

    kind = "several labels"

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return Bernoulli(logits=outputs, validate_args=False).to_event(1)


def require_classes(likelihood: Likelihood, what: str, instead: str = "") -> None:
    """Check that labels are classes.

    Raises:
        InputError: if they are not; the message names what needs it.
    """
    if likelihood.kind != "classes":
        raise InputError(f"{what}: of classes alone, and the likelihood is {type(likelihood).__name__}{instead}")
