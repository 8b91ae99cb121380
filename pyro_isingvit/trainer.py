"""One training: its settings, and its steps."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import pandas as pd
import pydantic
import pyro
import torch
from rich.progress import Progress
from torch import Tensor, nn

from .compact import as_floats
from .config import Config, Seed
from .data import AUGMENTATIONS, Augment, Images
from .elbo import TraceGraph_ELBO
from .errors import InputError, TrainingError
from .guides import Guide
from .models import IsingViT
from .predict import predict_plug_in
from .result import densities

LOGS = 50
"""Rows of the history."""

LOGGED_IMAGES = 1000
"""Held-out (else training) images behind the accuracy and NLL of each row, at most."""


class FitConfig(Config):
    """How to train.

    Attributes:
        steps: optimiser steps from start to end; what ``temperature="auto"`` tries comes on top.
        batch_size: images a step.
        learning_rate: peak rate of Adam.
        warmup: share of the steps over which the rate rises to its peak; then it falls to zero along a cosine.
        pilot: share of the steps with all masks on, before they are learned.
        fine_tune: share of the steps at the end that train the weights of the median-probability model.
        temperature: T of the power posterior, or ``"auto"``: a short path, cold to hot, after a warm pilot phase says
            by the calibrated NLL of the validation images where to begin. The Ising phase is run there, and again at
            hotter, else at colder temperatures as long as the NLL at its end falls; or ``"sparsest"``: likewise, and
            hotter as long as the NLL stays within one standard error of the least; see `temperature.finish`.
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
    temperature: pydantic.PositiveFloat | Literal["auto", "sparsest"] = "auto"
    target_density: float | None = pydantic.Field(default=None, gt=0, lt=1)
    clip: pydantic.PositiveFloat = 1.0
    augment: Augment | None = None
    seed: Seed = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"

    @pydantic.field_validator("temperature", mode="wrap")
    @classmethod
    def _number_or_rule(cls, value: object, check: pydantic.ValidatorFunctionWrapHandler) -> object:
        try:
            return check(value)
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


@dataclass(frozen=True)
class Snapshot:
    """Where training stood: states of model, guide and optimiser, and a `Trainer`'s counters and rows."""

    states: Sequence[dict[str, Any]]
    step: int
    position: float
    stride: float
    rows: tuple[dict[str, Any], ...]


class Trainer:
    """One optimiser and its progress through the steps of a fit."""

    def __init__(
        self,
        model: IsingViT,
        guide: Guide,
        train: Images,
        validation: Images | None,
        config: FitConfig,
        bar: Progress,
    ) -> None:
        device = train.images.device
        self.model, self.guide, self.train, self.config = model, guide, train, config
        self.step, self.started, self.seconds = 0, time.perf_counter(), 0.0
        self.position, self.stride = 0.0, 1.0  # along the schedule of the learning rate, and what a step adds
        self.rows: list[dict[str, Any]] = []
        model.num_data, model.seen = len(train), None
        self.loss = TraceGraph_ELBO()(model, guide)
        rate = config.learning_rate
        shared = [p for p in model.parameters() if p.requires_grad]
        groups = [*guide.parameter_groups(rate), *([{"params": shared, "lr": rate}] if shared else [])]
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        held_out = train if validation is None else validation.to(device)
        self.watched = held_out[torch.arange(min(LOGGED_IMAGES, len(held_out)), device=device)]
        self.batches = _batches(len(train), config.batch_size, device)
        self.bar, self.task = bar, bar.add_task("", total=config.steps)

    @property
    def history(self) -> pd.DataFrame:
        """See `FitResult`."""
        return pd.DataFrame(self.rows)

    def run_pilot(self) -> None:
        """The pilot phase: all masks on."""
        steps = round(self.config.pilot * self.config.steps)
        if steps:
            shapes, device = self.guide.mask_shapes, self.train.images.device
            self.model.fix_masks({name: torch.ones(shape, device=device) for name, shape in shapes.items()})
            self.run(steps, "pilot")
        self.model.fix_masks(None)

    def run(self, steps: int, phase: str, after_step: Callable[[], None] | None = None) -> None:
        """Train for some steps at the model's temperature; a row of history now and then and at the end."""
        model, config, every = self.model, self.config, math.ceil(self.config.steps / LOGS)
        scale = model.temperature / len(self.train)  # of a gradient in nats to one per image
        total, count = torch.zeros((), device=self.train.images.device), 0
        for i in range(steps):
            batch = next(self.batches)
            images, labels = self.train.images[batch], self.train.labels[batch]
            if config.augment is not None:
                images = config.augment(as_floats(images))
            with pyro.validation_enabled(i == 0):
                loss = self.loss(images, labels)
            loss.backward()
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * config.rate_at(self.position)
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, scale)
            nn.utils.clip_grad_norm_(self.parameters, config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.position += self.stride
            total, count = total + loss.detach() * scale, count + 1
            self.bar.advance(self.task)
            if after_step is not None:
                after_step()
            if self.step % every == 0 or i == steps - 1:
                self._log(phase, float(total) / count)
                total, count = torch.zeros_like(total), 0

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.model, self.guide, self.optimizer

    def snapshot(self) -> "Snapshot":
        """Where training stands."""
        states = [copy.deepcopy(part.state_dict()) for part in self._parts]
        return Snapshot(states, self.step, self.position, self.stride, tuple(self.rows))

    def go_back(self, snapshot: "Snapshot") -> None:
        """Put all back but for the temperature, random numbers and when a guide's next update is due."""
        for part, state in zip(self._parts, snapshot.states, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        self.model.seen = None
        self.step, self.position, self.stride = snapshot.step, snapshot.position, snapshot.stride
        self.rows = list(snapshot.rows)
        self.bar.reset(self.task, completed=self.step)

    def _log(self, phase: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"loss={loss} at step {self.step}, {phase} phase, temperature={self.model.temperature:g}: lower "
                f"learning_rate={self.config.learning_rate} or clip={self.config.clip}"
            )
        probs = predict_plug_in(self.model, self.guide, self.watched.images)
        labels = self.watched.labels.cpu()
        row = {
            "step": self.step,
            "phase": phase,
            "temperature": self.model.temperature,
            "loss": loss,
            "accuracy": float((probs.argmax(-1) == labels).float().mean()),
            "nll": float(nn.functional.nll_loss(probs.clamp_min(1e-12).log(), labels)),
            **densities(self.guide),
            "seconds": time.perf_counter() - self.started,
        }
        self.rows.append(row)
        density = f"  density {row['median_density']:.0%}" if "median_density" in row else ""
        self.bar.update(self.task, description=f"{phase:9} loss {loss:.3f}  accuracy {row['accuracy']:.1%}{density}")


def _batches(total: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Indices of endless minibatches of one size: a permutation an epoch, what does not fill a batch left out."""
    size = min(size, total)
    while True:
        yield from torch.randperm(total, device=device)[: total - total % size].split(size)
