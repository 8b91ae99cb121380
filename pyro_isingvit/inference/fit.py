"""Fitting a guide to a model: pilot with all masks on, Ising phase, fine-tuning of the median-probability model."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pyro
import torch

from ..data import Images
from ..draws import evaluating, seeded
from ..errors import InputError
from ..guides import Guide
from ..posterior import Posterior
from .config import FitConfig
from .events import Listener, ProgressBar, Started, Stopped
from .pair import check_pair
from .path import FitPath, path_table
from .result import FitResult
from .search import TemperatureSearch
from .trainer import Trainer


def fit(
    guide: Guide,
    train: Images,
    validation: Images | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> FitResult:
    """Fit a guide to the posterior of a model by stochastic variational inference.

    The phases: *pilot*, all masks on; *ising*, masks are learned; *fine-tune*, masks fixed at the
    median-probability model. A model without masks trains in one phase.

    Args:
        guide: the variational distribution, with its model. Both are trained in place and moved to the device.
        train: images to learn from.
        validation: images to decide on; needed by a search for the temperature, which also calibrates the
            posterior on them, see `Posterior.calibrate`. Never the test images.
        config: how to train; `FitConfig()` if None.
        progress: whether to show a progress bar.
        listeners: are told what happens, see `pyro_isingvit.inference.events`.

    Returns:
        The posterior, which is a copy of what was fitted, and the log of the fit.

    Raises:
        InputError: if the arguments do not fit together.
        TrainingError: if the loss is no longer finite (at a temperature that has to be tried).
    """
    config = config or FitConfig()
    path = finished = None
    with _training(guide, train, validation, config, progress, listeners) as trainer:
        if not _sparsifies(guide):
            trainer.run(config.steps, "weights")
        else:
            trainer.run_pilot()
            fine_tune = round(config.fine_tune * config.steps)
            ising = config.steps - trainer.step - fine_tune
            if isinstance(config.temperature, TemperatureSearch) and ising:
                path, finished = config.temperature.run(trainer, cast(Images, validation), ising)
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
    listeners: Sequence[Listener] = (),
) -> FitPath:
    """Fit a guide at many temperatures in one go, from cold and dense to hot and sparse.

    After the pilot phase, which is warm, all steps are spread evenly over the temperatures of the configuration's
    `TemperatureSearch`, each starting from the one before, at one low learning rate and with averaged parameters. Every
    point of the path is kept.

    Args:
        guide, train, validation, config, progress, listeners: see `fit`. The temperature has to be a search.

    Returns:
        The curve, and the posterior at each point of it.

    Raises:
        InputError, TrainingError: see `fit`.
    """
    config = config or FitConfig()
    search = config.temperature
    if not isinstance(search, TemperatureSearch):
        raise InputError(f"temperature={search}: a path goes through all temperatures; leave it 'auto'")
    for name, value, free in (("target_density", config.target_density, None), ("fine_tune", config.fine_tune, 0)):
        if value != free:
            raise InputError(f"{name}={value}: a path goes through all temperatures and densities; leave it {free!r}")
    with _training(guide, train, validation, config, progress, listeners) as trainer:
        trainer.run_pilot()
        left = config.steps - trainer.step
        tried = len(search.factors)
        if left < tried:
            raise InputError(
                f"steps={config.steps}, pilot={config.pilot} leave {left} for {tried} temperatures: more steps"
            )
        stops = search.follow_path(trainer, validation, left // tried, patience=math.inf)
    table, facts = path_table(stops), config.model_dump(mode="json")
    return FitPath(Posterior.of(guide), table, stops, trainer.history, trainer.seconds, facts)


@contextmanager
def _training(
    guide: Guide,
    train: Images,
    validation: Images | None,
    config: FitConfig,
    progress: bool,
    listeners: Sequence[Listener],
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
    ):
        wanted = config.temperature
        if isinstance(wanted, TemperatureSearch):
            model.temperature = wanted.pilot_temperature(guide, len(train))
        else:
            model.temperature = wanted
        listening: list[Listener] = [*([ProgressBar()] if progress else []), *listeners]
        trainer = Trainer(guide, train.to(device), validation, config, listening)
        trainer.tell(Started(config.steps))
        try:
            yield trainer
        finally:
            trainer.tell(Stopped(trainer.step))
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
    searched = isinstance(config.temperature, TemperatureSearch)
    if searched and validation is None:
        raise InputError(
            "temperature: a search, such as 'auto', is decided on held-out images: pass validation, or a number, e.g. "
            "1e-3"
        )
    if searched and (not _sparsifies(guide) or config.pilot + config.fine_tune == 1):
        raise InputError(
            "temperature: a search, such as 'auto', is decided in the Ising phase, and there is none (no masks, or "
            "pilot and fine_tune take all steps): give a number, e.g. 1e-3"
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
