"""Fitting a guide to a model: pilot with all masks on, Ising phase, fine-tuning of the median-probability model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pyro
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..data import Images
from ..draws import evaluating, seeded
from ..errors import InputError
from ..guides import Guide
from ..posterior import Posterior
from .config import FitConfig
from .pair import check_pair
from .result import FitResult
from .search import FACTORS, PATIENCE, SHARE, FitPath, finish, follow_path, path_table, pilot_temperature
from .trainer import Trainer


def fit(
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
        guide: the variational distribution, with its model. Both are trained in place and moved to the device.
        train: images to learn from.
        validation: images to decide on; needed for ``temperature="auto"`` and ``"sparsest"``, which calibrate the
            posterior by them too, see `Posterior.calibrate`. Never the test images.
        config: how to train; `FitConfig()` if None.
        progress: whether to show a progress bar.

    Returns:
        The posterior, which is a copy of what was fitted, and the log of the fit.

    Raises:
        InputError: if the arguments do not fit together.
        TrainingError: if the loss is no longer finite (at a temperature that has to be tried).
    """
    config = config or FitConfig()
    path = finished = None
    with _training(guide, train, validation, config, progress) as trainer:
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
                guide.model.fix_masks(guide.median_masks())
                trainer.run(fine_tune, "fine-tune")
    posterior = Posterior.of(guide)
    if finished is not None:
        posterior = posterior.calibrate(cast(Images, validation))
    return FitResult(posterior, trainer.history, path, finished, trainer.seconds, config.model_dump(mode="json"))


def fit_path(
    guide: Guide,
    train: Images,
    validation: Images,
    config: FitConfig | None = None,
    progress: bool = True,
) -> FitPath:
    """Fit a guide at many temperatures in one go, from cold and dense to hot and sparse.

    After the pilot phase, which is warm, all steps are spread evenly over `temperature.FACTORS`, each temperature
    starting from the one before, at one low learning rate and with averaged parameters. What ``temperature="auto"``
    does in short before its Ising phase is done here with all steps, and every point is kept.

    Args:
        guide, train, validation, config, progress: see `fit`. The configuration's temperature stays ``"auto"``.

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
    with _training(guide, train, validation, config, progress) as trainer:
        trainer.run_pilot()
        left = config.steps - trainer.step
        if left < len(FACTORS):
            raise InputError(
                f"steps={config.steps}, pilot={config.pilot} leave {left} for {len(FACTORS)} temperatures: more steps"
            )
        stops = follow_path(trainer, validation, left // len(FACTORS))
    table, facts = path_table(stops), config.model_dump(mode="json")
    return FitPath(Posterior.of(guide), table, stops, trainer.history, trainer.seconds, facts)


@contextmanager
def _training(
    guide: Guide, train: Images, validation: Images | None, config: FitConfig, progress: bool
) -> Iterator[Trainer]:
    """A trainer on the device, with everything in place for the time of a fit."""
    device, model = config.torch_device(), guide.model
    model.to(device).train()
    guide.to(device).train()
    _check(guide, train, validation, config)
    with (
        _holding(guide, config.target_density),
        seeded(device, config.seed),
        pyro.validation_enabled(False),
        Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), disable=not progress) as bar,
    ):
        wanted = config.temperature
        model.temperature = pilot_temperature(guide, len(train)) if isinstance(wanted, str) else wanted
        trainer = Trainer(guide, train.to(device), validation, config, bar)
        yield trainer
        trainer.seconds = time.perf_counter() - trainer.started


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


def _sparsifies(guide: Guide) -> bool:
    return bool(guide.mask_shapes) or guide.sparsifies


def _check(guide: Guide, train: Images, validation: Images | None, config: FitConfig) -> None:
    model = guide.model
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
        check_pair(guide, train.images[:1].to(device), train.labels[:1].to(device))
