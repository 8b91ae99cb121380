"""Fitting a guide to a model: pilot with all masks on, Ising phase, fine-tuning of the median-probability model."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyro
import torch

from ..data import Images
from ..draws import evaluating, seeded
from ..errors import InputError, InterruptedFitError, kind_of
from ..guides import Guide
from ..models import IsingViT
from ..posterior import Posterior
from ..programs import keeping_memory
from ..saved import description
from .checkpoint import Checkpoints
from .config import FitConfig
from .events import Listener, ProgressBar, Started, Stopped
from .pair import check_pair
from .path import FitPath, path_table
from .result import FitResult
from .search import TemperatureSearch
from .signals import listening
from .trainer import Trainer


def fit(
    guide: Guide,
    train: Images,
    validation: Images | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    interval: float = 60.0,
) -> FitResult:
    """Fit a guide to the posterior of a model by stochastic variational inference.

    There are three phases: the pilot phase, with all masks on; the Ising phase, in which masks are learned; and
    fine-tuning, with masks fixed at the median-probability model. Without masks there is only one phase, unless the
    guide `sparsifies` weights in another way.

    Args:
        guide: the variational distribution, with its model. Both are trained in place and moved to the device.
        train: images to learn from.
        validation: held-out images, needed by a search for the temperature, which chooses the temperature on them and
            also calibrates the posterior on them, see `Posterior.calibrate`. They must not be the test images.
        config: how to train; `FitConfig()` if None.
        progress: whether to show a progress bar.
        listeners: functions that are called with the events of the fit, see `pyro_isingvit.inference.events`.
        checkpoint: folder for checkpoints; None for none. Then Ctrl-C and SIGTERM save one before they are obeyed.
        resume: whether to go on from the last checkpoint in the folder, or from the beginning if there is none. The
            other arguments have to be those of the fit that was interrupted. It ends with the same bits as without the
            interruption, on the same machine with as many threads.
        interval: seconds between checkpoints.

    Returns:
        The posterior, which is a copy of what was fitted, and the log of the fit.

    Raises:
        InputError: if the arguments do not fit together, or the checkpoints are of another fit.
        TrainingError: if training breaks down: the loss is no longer finite, or the predictions of a search are not. A
            search goes on without the trial in which this happens, unless it is the first.
        InterruptedFitError: if the process was told to stop, once a checkpoint is saved; it is a `KeyboardInterrupt`.
    """
    config = FitConfig() if config is None else config
    trials = None
    saving = _Saving(checkpoint, resume, interval)
    with _training(guide, train, validation, config, progress, listeners, saving) as trainer:
        if not _sparsifies(guide):
            trainer.run(config.steps, "weights")
        else:
            fine_tune = round(config.fine_tune * config.steps)
            ising = config.steps - trainer.run_pilot() - fine_tune
            if isinstance(config.temperature, TemperatureSearch) and ising:
                trials = config.temperature.run(trainer, cast(Images, validation), ising)
            else:
                trainer.run(ising, "ising")
            if fine_tune:
                guide.model.fix_masks(guide.median_masks())
                trainer.run(fine_tune, "fine-tune")
    posterior = Posterior.of(guide, names=train.names)
    if trials is not None:
        posterior = posterior.calibrate(cast(Images, validation))
    return FitResult(posterior, trainer.history, trials, trainer.seconds, config.model_dump(mode="json"))


def fit_path(
    guide: Guide,
    train: Images,
    validation: Images,
    config: FitConfig | None = None,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> FitPath:
    """Fit a guide at many temperatures of the posterior in one run, from cold and dense to hot and sparse.

    After the pilot phase, which is warm, the remaining steps are spread evenly over the temperatures of the
    configuration's `TemperatureSearch`. Each temperature starts where the one before ended. The learning rate is held,
    and parameters are averaged at each temperature. Every point of the path is kept.

    Args:
        guide, train, validation, config, progress, listeners: see `fit`. ``config.temperature`` has to be a
            `TemperatureSearch`, and ``target_density`` and ``fine_tune`` have to be left at their defaults.

    Returns:
        The curve, and the posterior at each point of it.

    Raises:
        InputError: see `fit`; also if the configuration does not suit a path, or has too few steps for it.
        TrainingError: if training breaks down in the pilot phase or at the first temperature; later, the path ends.
    """
    config = FitConfig() if config is None else config
    search = config.temperature
    if not isinstance(search, TemperatureSearch):
        raise InputError(f"temperature={search}: a path goes through all temperatures; leave it 'auto'")
    for name, value, free in (("target_density", config.target_density, None), ("fine_tune", config.fine_tune, 0)):
        if value != free:
            raise InputError(f"{name}={value}: a path goes through all temperatures and densities; leave it {free!r}")
    with _training(guide, train, validation, config, progress, listeners) as trainer:
        left = config.steps - trainer.run_pilot()
        tried = len(search.factors)
        if left < tried:
            raise InputError(
                f"steps={config.steps}, pilot={config.pilot} leave {left} for {tried} temperatures: more steps"
            )
        stops = search.follow_path(trainer, validation, left // tried)
    table, facts = path_table(stops), config.model_dump(mode="json")
    return FitPath(Posterior.of(guide, names=train.names), table, stops, trainer.history, trainer.seconds, facts)


@dataclass(frozen=True)
class _Saving:
    """Whether and how a fit saves checkpoints and goes on from them; see `fit`."""

    folder: str | Path | None = None
    resume: bool = False
    interval: float = 60.0

    def checkpoints(
        self, guide: Guide, train: Images, validation: Images | None, config: FitConfig
    ) -> Checkpoints | None:
        if self.folder is None:
            if self.resume:
                raise InputError("resume=True with checkpoint=None: give the folder of the checkpoints")
            return None
        facts = {"guide": description(guide), "config": config.model_dump(mode="json", exclude={"device"})}
        images = {"train": train.fingerprint, "validation": None if validation is None else validation.fingerprint}
        found = Checkpoints(self.folder, self.interval, facts | images)
        if found.files() and not self.resume:
            raise InputError(
                f"checkpoint={str(self.folder)!r} holds checkpoints: resume=True goes on from them; or choose another"
            )
        return found


@contextmanager
def _training(
    guide: Guide,
    train: Images,
    validation: Images | None,
    config: FitConfig,
    progress: bool,
    listeners: Sequence[Listener],
    saving: _Saving | None = None,
) -> Iterator[Trainer]:
    """Context with a trainer on the device, and with random state, held density and temperature set for the fit."""
    check_kinds(guide=guide, train=train, validation=validation, config=config)
    checkpoints = saving.checkpoints(guide, train, validation, config) if saving is not None else None
    device, model = config.torch_device(), guide.model
    model.to(device).train()
    guide.to(device).train()
    check_together(guide, train, validation, config)
    with (
        _holding(guide, config.target_density),
        seeded(device, config.seed),
        keeping_memory(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
        listening(checkpoints is not None) as told,
    ):
        wanted = config.temperature
        everyone: list[Listener] = [*([ProgressBar()] if progress else []), *listeners]
        trainer = Trainer(guide, train.to(device), validation, config, everyone, checkpoints, told)
        search = wanted if isinstance(wanted, TemperatureSearch) else None
        trainer.temperature = cast(float, wanted) if search is None else search.pilot_temperature(guide, len(train))
        before = model.fixed_masks
        with ExitStack() as at_the_end:  # all of it, whatever goes wrong
            at_the_end.push(lambda error, *_: model.fix_masks(before) if error else None)
            at_the_end.callback(model.follow, None)
            at_the_end.callback(guide.forget)
            for listener in everyone:
                at_the_end.callback(_stop, listener, trainer)
            trainer.tell(Started(config.steps))
            if saving is not None and saving.resume:
                trainer.resume()
            yield trainer
        if told.signal is not None:  # after the last step
            where = cast(_Saving, saving).folder
            raise InterruptedFitError(f"stopped after the last step; go on from the checkpoint in {where}", told.signal)
        trainer.seconds = time.perf_counter() - trainer.started


def _stop(listener: Listener, trainer: Trainer) -> None:
    listener(Stopped(trainer.step))


@contextmanager
def _holding(guide: Guide, density: float | None) -> Iterator[None]:
    """Context in which the guide holds a density, if one is given."""
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


def check_kinds(**arguments: object) -> None:
    """Check that some arguments of `fit`, by name, are of the right kinds.

    Raises:
        InputError: if one is not.
    """
    for name, value in arguments.items():
        kind, fix = _KINDS[name]
        if not isinstance(value, kind):
            raise InputError(f"{name}={kind_of(value)}: fit(guide, train, validation, config) takes {fix} here")


_LIKELIHOODS = {"classes": "Classes()", "numbers": "Regression()", "several labels": "SeveralLabels()"}
"""A likelihood for each kind of labels."""

_KINDS: dict[str, tuple[Any, str]] = {
    "guide": (Guide, "a Guide of the model, e.g. LikelihoodGuided(model)"),
    "train": (Images, "Images"),
    "validation": (Images | None, "Images, or None"),
    "config": (FitConfig, "a FitConfig"),
}


def check_together(guide: Guide, train: Images, validation: Images | None, config: FitConfig) -> None:
    """Check that arguments of `fit` fit together, on the device where the guide is.

    Raises:
        InputError: if they do not.
    """
    model = guide.model
    searched = isinstance(config.temperature, TemperatureSearch)
    if searched and validation is None:
        raise InputError(
            "temperature: a search, such as 'auto', is decided on held-out images: pass validation, or a number, e.g. "
            "1e-3"
        )
    if searched and model.likelihood.kind != "classes":
        raise InputError(
            "temperature: a search, such as 'auto', compares predictions of classes, and the likelihood is "
            f"{type(model.likelihood).__name__}: give a number, e.g. 1.0"
        )
    if searched and (not _sparsifies(guide) or config.pilot + config.fine_tune == 1):
        raise InputError(
            "temperature: a search, such as 'auto', is decided in the Ising phase, and there is none (no masks, or "
            "pilot and fine_tune take all steps): give a number, e.g. 1e-3"
        )
    device = next(model.network.parameters()).device
    for name, part in (("train", train), ("validation", validation)):
        if part is not None:
            check_part(model, name, part)
    with seeded(device), evaluating(model, guide):
        check_pair(guide, train.images[:1].to(device), train.labels[:1].to(device))


def check_part(model: IsingViT, name: str, part: Images) -> None:
    """Check that labelled images fit a model.

    Raises:
        InputError: if their labels are of another kind or number than its likelihood and network are for, or a `ViT`
            takes images of another size.
    """
    likelihood = model.likelihood
    if likelihood.kind != part.kind:
        raise InputError(
            f"{name}.labels: {part.kind}, and the likelihood, {type(likelihood).__name__}, is of {likelihood.kind}; "
            f"give IsingViT(likelihood={_LIKELIHOODS[part.kind]})"
        )
    if part.kind == "classes" and part.classes == 1:
        raise InputError(f"{name}.classes=1: one class leaves nothing to predict; give numbers as floats")
    with torch.no_grad():
        outputs = model.network(part.images[:1].to(next(model.network.parameters()).device)).shape[-1]
    wanted = likelihood.outputs(part.classes)
    if outputs != wanted:
        raise InputError(f"{name}.classes={part.classes}: the network has {outputs}; set ViTConfig(classes={wanted})")
