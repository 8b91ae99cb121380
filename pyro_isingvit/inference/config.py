"""How to train."""

import math
from collections.abc import Mapping
from typing import Literal, Self

import pydantic
import torch

from ..config import Config, Seed
from ..data import AUGMENTATIONS, Augment
from ..errors import InputError
from .search import TemperatureSearch

SEARCHES = {"auto": TemperatureSearch(), "sparsest": TemperatureSearch(rule="sparsest")}
"""Short names of searches for the temperature."""


class FitConfig(Config):
    """How to train.

    Attributes:
        steps: optimiser steps from start to end; what a search for the temperature tries comes on top.
        batch_size: images a step.
        learning_rate: peak rate of Adam.
        warmup: share of the steps over which the rate rises to its peak; then it falls to zero along a cosine.
        pilot: share of the steps with all masks on, before they are learned.
        fine_tune: share of the steps at the end that train the weights of the median-probability model.
        temperature: T of the posterior, a positive number; or how to search for it, see `TemperatureSearch`, of which
            ``"auto"`` (the default) and ``"sparsest"`` are short names. With a number, the model is trained once, at
            that temperature from the first step.
        target_density: hold the mean inclusion probability of all weights here; None leaves it to prior and likelihood.
        clip: largest norm of the gradient of the loss per image, over all parameters together.
        augment: random transformation of the training images, or the name of one of `AUGMENTATIONS`, or None.
        seed: of everything random in `fit`.
        device: ``"cpu"``, ``"cuda"``, ... or ``"auto"``: a GPU if there is one.
        precision: of matrix products in training. ``"bfloat16"`` saves up to half of the time where the processor has
            instructions for it; after training all is float32.
    """

    steps: pydantic.PositiveInt = 3000
    batch_size: pydantic.PositiveInt = 50
    learning_rate: pydantic.PositiveFloat = 2e-3
    warmup: float = pydantic.Field(default=0.2, gt=0, lt=1)
    pilot: float = pydantic.Field(default=0.6, ge=0, le=1)
    fine_tune: float = pydantic.Field(default=0.0, ge=0, le=1)
    temperature: pydantic.PositiveFloat | TemperatureSearch = TemperatureSearch()
    target_density: float | None = pydantic.Field(default=None, gt=0, lt=1)
    clip: pydantic.PositiveFloat = 1.0
    augment: Augment | None = None
    seed: Seed = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"

    @pydantic.field_validator("temperature", mode="wrap")
    @classmethod
    def _number_or_search(cls, value: object, check: pydantic.ValidatorFunctionWrapHandler) -> object:
        if isinstance(value, Mapping):
            return TemperatureSearch(**value)
        try:
            return check(SEARCHES[value] if isinstance(value, str) and value in SEARCHES else value)
        except pydantic.ValidationError:
            raise ValueError("give a positive number, 'auto' or 'sparsest'") from None

    @pydantic.field_validator("augment", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value not in AUGMENTATIONS:
            raise ValueError(f"choose one of {list(AUGMENTATIONS)}")
        return AUGMENTATIONS[value]

    @pydantic.model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.pilot + self.fine_tune > 1:
            raise ValueError(f"pilot={self.pilot} and fine_tune={self.fine_tune} are more than 1 together; lower one")
        return self

    def rate_at(self, step: float) -> float:
        """Learning rate of a step (from 0) as a share of its peak: a linear rise, then a cosine to zero."""
        rise = self.warmup * self.steps
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (self.steps - rise))))

    def steps_per_pass(self, images: int) -> int:
        """Steps that go once through so many images; what does not fill a batch is left out of the pass."""
        return max(1, images // min(self.batch_size, images))

    def torch_device(self) -> torch.device:
        """The device that ``device`` means here.

        Raises:
            InputError: if there is none such.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError):
            raise InputError(f"device={self.device!r}: not available here; use 'cpu' or 'auto'") from None
