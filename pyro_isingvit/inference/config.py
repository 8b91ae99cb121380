"""The configuration of a fit."""

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

MOST = 1_000_000_000
"""Largest number of steps, or of images in a batch, that is taken for meant."""


class FitConfig(Config):
    """How `fit` trains.

    Attributes:
        steps: number of optimiser steps; the temperatures that a search tries take further steps.
        batch_size: images per step.
        learning_rate: peak learning rate of Adam.
        rates: factors on the learning rate by pattern (``*``, ``?``) of names of sites and of the network's other
            parameters, such as ``{"head*": 10.0}``; the first pattern that matches counts.
        warmup: share of the steps over which the learning rate rises to its peak; then it falls to zero along a cosine.
        pilot: share of the steps that the pilot phase takes, in which all masks are on.
        fine_tune: share of the steps at the end that train the weights of the median-probability model.
        temperature: T, the temperature of the posterior, a positive number; or a `TemperatureSearch`, of which
            ``"auto"`` (the default) and ``"sparsest"`` are short names. With a number, the model is trained once, at
            that temperature from the first step.
        target_density: mean inclusion probability of all weights, within (0, 1), which the guide holds; None leaves it
            to prior and likelihood.
        clip: largest norm of the gradient of the loss per image, over all parameters together; larger gradients are
            scaled down to it.
        augment: random transformation of the training images, or the name of one of `AUGMENTATIONS`, or None.
        seed: seed of everything random in `fit`.
        device: ``"cpu"``, ``"cuda"``, ... or ``"auto"``: a GPU if there is one.
        precision: precision of matrix products in training. ``"bfloat16"`` saves up to half of the time if the
            processor has instructions for it; ``"float16"`` is for GPUs without these, and needs ``compile=False``.
            After training everything is float32.
        compile: whether the step is traced and compiled by torch's Inductor, which needs a C++ compiler. Losses and
            gradients are the same to rounding. Compiling takes about a minute, and seconds once it is cached on disk,
            so that it pays in fits of thousands of steps only; see docs/performance.md. Programs that cannot be
            traced are refused before the first step.

    Raises:
        InputError: if a value is out of range, ``pilot`` and ``fine_tune`` are more than 1 together, or a compiled step
            is to be in float16.
    """

    steps: int = pydantic.Field(default=3000, ge=1, le=MOST)
    batch_size: int = pydantic.Field(default=50, ge=1, le=MOST)
    learning_rate: pydantic.PositiveFloat = 2e-3
    rates: dict[str, pydantic.PositiveFloat] = {}
    warmup: float = pydantic.Field(default=0.2, gt=0, lt=1)
    pilot: float = pydantic.Field(default=0.6, ge=0, le=1)
    fine_tune: float = pydantic.Field(default=0.0, ge=0, le=1)
    temperature: pydantic.PositiveFloat | TemperatureSearch = TemperatureSearch()
    target_density: float | None = pydantic.Field(default=None, gt=0, lt=1)
    clip: pydantic.PositiveFloat = 1.0
    augment: Augment | None = None
    seed: Seed = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False

    @pydantic.field_validator("temperature", mode="wrap")
    @classmethod
    def _number_or_search(cls, value: object, check: pydantic.ValidatorFunctionWrapHandler) -> object:
        if isinstance(value, Mapping):
            return TemperatureSearch(**{str(name): setting for name, setting in value.items()})
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

    @pydantic.model_validator(mode="after")
    def _compiled_steps_have_no_loss_scale(self) -> Self:
        if self.compile and self.precision == "float16":
            raise ValueError("compile=True and precision='float16': use precision='bfloat16', or compile=False")
        return self

    def rate_at(self, step: float) -> float:
        """Learning rate of a step (from 0) as a share of its peak: a linear rise, then a cosine to zero."""
        rise = self.warmup * self.steps
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (self.steps - rise))))

    def steps_per_pass(self, images: int) -> int:
        """Number of steps of one pass through ``images`` images; images that do not fill a batch are left out of it."""
        return max(1, images // min(self.batch_size, images))

    def torch_device(self) -> torch.device:
        """The torch device that ``device`` names on this machine.

        Raises:
            InputError: if it is not available.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError):
            raise InputError(f"device={self.device!r}: not available here; use 'cpu' or 'auto'") from None
