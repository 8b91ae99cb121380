"""The training loop: pilot with all masks on, Ising phase, fine-tuning of the median-probability model."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import pandas as pd
import pydantic
import pyro
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .compact import as_floats
from .config import Config
from .conformance import check_pair
from .data import AUGMENTATIONS, Augment, Images
from .elbo import TraceGraph_ELBO
from .errors import InputError, TrainingError
from .guides import Guide
from .models import IsingViT
from .predict import evaluating, predict_plug_in, seeded
from .result import FitResult, densities
from .temperature import FACTORS, PATIENCE, SHARE, FitPath, finish, follow_path, grid, path_table

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
        temperature: T of the power posterior, or ``"auto"``: after the pilot phase a short path from cold to hot says
            by the NLL of the validation images where to begin. The Ising phase is run there, and again at hotter, else
            at colder temperatures as long as the NLL at its end falls; or ``"sparsest"``: likewise, and hotter as long
            as the NLL stays within one standard error of the least; see `temperature.finish`.
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
    seed: pydantic.NonNegativeInt = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"

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


def fit(
    model: IsingViT,
    guide: Guide,
    train: Images,
    validation: Images | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
) -> FitResult:
    """Fit a guide to the posterior of a model by stochastic variational inference.

    The phases: *pilot*, all masks on; *ising*, masks are learned; *fine-tune*, masks fixed at the
    median-probability model. A model without masks trains in one phase.

    Args:
        model, guide: the pair; they are trained in place and moved to the device.
        train: images to learn from.
        validation: images to decide on; needed for ``temperature="auto"``. Never the test images.
        config: how to train; `FitConfig()` if None.
        progress: whether to show a progress bar.

    Returns:
        The fitted pair with its history; it predicts, saves and loads.

    Raises:
        InputError: if the arguments do not fit together.
        TrainingError: if the loss is no longer finite (at a temperature that has to be tried).
    """
    config = config or FitConfig()
    path = finished = None
    with _training(model, guide, train, validation, config, progress) as trainer:
        if not _sparsifies(guide):
            trainer.run(config.steps, "weights")
        else:
            trainer.run_pilot()
            fine_tune = round(config.fine_tune * config.steps)
            ising = config.steps - trainer.step - fine_tune
            if isinstance(config.temperature, str) and ising:
                assert validation is not None
                start, sparsest = trainer.snapshot(), config.temperature == "sparsest"
                each = max(1, round(SHARE * ising / len(FACTORS)))
                path = path_table(follow_path(trainer, validation, each, PATIENCE))
                first = int(path["least_nll"].to_numpy().argmax())
                finished = finish(trainer, validation, start, first, ising, sparsest)
            else:
                trainer.run(ising, "ising")
            if fine_tune:
                model.fix_masks(guide.median_masks())
                trainer.run(fine_tune, "fine-tune")
    facts = config.model_dump(mode="json")
    return FitResult(model, guide, trainer.history, path, trainer.seconds, facts, finished)


def fit_path(
    model: IsingViT,
    guide: Guide,
    train: Images,
    validation: Images,
    config: FitConfig | None = None,
    progress: bool = True,
) -> FitPath:
    """Fit a guide at many temperatures in one go, from cold and dense to hot and sparse.

    After the pilot phase all steps are spread evenly over `temperature.FACTORS`, each temperature starting from the one
    before, at one low learning rate and with averaged parameters. What ``temperature="auto"`` does in short before its
    Ising phase is done here with all steps, and every point is kept.

    Args:
        model, guide, train, validation, config, progress: see `fit`. The configuration's temperature stays ``"auto"``.

    Returns:
        The curve, and the posterior at each point of it.

    Raises:
        InputError, TrainingError: see `fit`.
    """
    config = config or FitConfig()
    for name, value, free in (
        ("temperature", config.temperature, "auto"),
        ("target_density", config.target_density, None),
        ("fine_tune", config.fine_tune, 0),
    ):
        if value != free:
            raise InputError(f"{name}={value}: a path goes through all temperatures and densities; leave it {free!r}")
    with _training(model, guide, train, validation, config, progress) as trainer:
        trainer.run_pilot()
        left = config.steps - trainer.step
        if left < len(FACTORS):
            raise InputError(
                f"steps={config.steps}, pilot={config.pilot} leave {left} for {len(FACTORS)} temperatures: more steps"
            )
        stops = follow_path(trainer, validation, left // len(FACTORS))
    table, facts = path_table(stops), config.model_dump(mode="json")
    return FitPath(model, guide, table, stops, trainer.history, trainer.seconds, facts)


@contextmanager
def _training(
    model: IsingViT, guide: Guide, train: Images, validation: Images | None, config: FitConfig, progress: bool
) -> Iterator["Trainer"]:
    """A trainer of the pair on its device, with everything in place for the time of a fit."""
    device = config.torch_device()
    model.to(device).train()
    guide.to(device).train()
    _check(model, guide, train, validation, config)
    with (
        _holding(guide, config.target_density),
        _computing(model, getattr(torch, config.precision)),
        seeded(device, config.seed),
        pyro.validation_enabled(False),
        Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), disable=not progress) as bar,
    ):
        trainer = Trainer(model, guide, train.to(device), validation, config, bar)
        yield trainer
        trainer.seconds = time.perf_counter() - trainer.started


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
        model.temperature = grid(model, len(train))[0] if isinstance(config.temperature, str) else config.temperature
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


@contextmanager
def _holding(guide: Guide, density: float | None) -> Iterator[None]:
    """Hold a density for the time of a fit, if there is one given."""
    before = guide.target_density
    if density is not None:
        guide.hold_density(density)
    try:
        yield
    finally:
        if density is not None:
            guide.hold_density(before)


@contextmanager
def _computing(model: IsingViT, precision: torch.dtype) -> Iterator[None]:
    """In a precision, for the time of a fit."""
    before, model.precision = model.precision, precision
    try:
        yield
    finally:
        model.precision = before


def _sparsifies(guide: Guide) -> bool:
    return bool(guide.mask_shapes) or guide.sparsifies


def _check(model: IsingViT, guide: Guide, train: Images, validation: Images | None, config: FitConfig) -> None:
    if guide.model is not model:
        raise InputError(f"guide={type(guide).__name__} was made for another model: make it from this one")
    if isinstance(config.temperature, str) and validation is None:
        raise InputError(
            f'temperature="{config.temperature}" is decided on held-out images: pass validation, or a number, e.g. 1e-3'
        )
    if isinstance(config.temperature, str) and (not _sparsifies(guide) or config.pilot + config.fine_tune == 1):
        raise InputError(
            f'temperature="{config.temperature}" is decided in the Ising phase, and there is none (no masks, or pilot '
            "and fine_tune take all steps): give a number, e.g. 1e-3"
        )
    device = next(model.network.parameters()).device
    for name, part in (("train", train), ("validation", validation)):
        if part is None:
            continue
        with torch.no_grad():
            classes = model.network(part.images[:1].to(device)).shape[-1]
        if classes != part.classes:
            raise InputError(
                f"{name}.classes={part.classes}: the network has {classes}; set ViTConfig(classes={part.classes})"
            )
    with seeded(device), evaluating(model, guide):
        check_pair(model, guide, train.images[:1].to(device), train.labels[:1].to(device))
