"""Fitting a guide to a model: pilot with all masks on, Ising phase, fine-tuning of the median-probability model."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyro
import torch

from ..data import Images
from ..data.streams import Labelled, Source, in_memory
from ..draws import seeded
from ..errors import InputError, InterruptedFitError
from ..guides import Guide
from ..posterior import Posterior
from ..programs import keeping_memory
from ..saved import description
from .checkpoint import Checkpoints
from .config import FitConfig
from .events import Listener, ProgressBar, Started, Stopped
from .inputs import check_kinds, check_together, read_data, sparsifies
from .launch import on_devices
from .path import FitPath, path_table
from .ranks import check_devices, check_share, connect, launched, seed_of, watched
from .result import FitResult
from .search import TemperatureSearch
from .signals import listening
from .state import attributes, set_attributes
from .trainer import Trainer

SETTLED_IMAGES = 250
"""Number of training images on which parameters of a likelihood are compared with errors."""


def fit(
    guide: Guide,
    train: Source,
    validation: Source | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    interval: float = 60.0,
    devices: int = 1,
    strategy: Any = "ddp",
) -> FitResult:
    """Fit a guide to the posterior of a model by stochastic variational inference.

    There are three phases: the pilot phase, with all masks on; the Ising phase, in which masks are learned; and
    fine-tuning, with masks fixed at the median-probability model. Without masks there is only one phase, unless the
    guide `sparsifies` weights in another way.

    Args:
        guide: the variational distribution, with its model. Both are trained in place and moved to the device.
        train: images to learn from: `Images`; or a map-style torch `Dataset` of pairs (image, label), which is read
            batch by batch; or a `DataLoader` of one, whose batch size, workers, pinning and collation are used. Batches
            are drawn here, without replacement.
        validation: held-out images, needed by a search for the temperature, which chooses the temperature on them and
            also calibrates the posterior on them, see `Posterior.calibrate`. They must not be the test images. Of a
            `Dataset` or `DataLoader` at most `inputs.VALIDATION` are drawn.
        config: how to train; `FitConfig()` if None.
        progress: whether to show a progress bar.
        listeners: functions that are called with the events of the fit, see `pyro_isingvit.inference.events`.
        checkpoint: folder for checkpoints; None for none. Then Ctrl-C and SIGTERM save one before they are obeyed.
        resume: whether to go on from the last checkpoint in the folder, or from the beginning if there is none. The
            other arguments have to be those of the fit that was interrupted. It ends with the same bits as without the
            interruption, on the same machine with as many threads.
        interval: seconds between checkpoints.
        devices: number of devices of this machine, or of each machine if a launcher (torchrun, a cluster's) has started
            the processes. Otherwise they are started here, one for each device, and end with this one. The batch of a
            step is shared among all devices, and each draws masks and weights of its own; otherwise it is the same
            fit. It needs Lightning Fabric (the extra ``devices``). A fit may be resumed on another number of devices.
        strategy: ``"ddp"``, or a `DDPStrategy` of Lightning Fabric.

    Returns:
        The posterior, which is a copy of what was fitted, and the log of the fit.

    Raises:
        InputError: if the arguments do not fit together, or the checkpoints are of another fit.
        TrainingError: if training breaks down: the loss is no longer finite, or the predictions of a search are not. A
            search goes on without the trial in which this happens, unless it is the first.
        InterruptedFitError: if the process was told to stop, once a checkpoint is saved; it is a `KeyboardInterrupt`.

    Warns:
        UserWarning: if the median network keeps nothing, or training has not settled the likelihood's own parameters.
    """
    config = FitConfig() if config is None else config
    check_kinds(guide=guide, config=config)
    check_devices(devices, strategy)
    images, held_out, config = read_data(guide.model, train, validation, config)
    saving = _Saving(checkpoint, resume, interval)
    if devices > 1 and not launched():
        check_share(config.batch_size, devices)
        check_together(guide, images, held_out, config)
        options: dict[str, Any] = {"checkpoint": checkpoint, "resume": resume, "interval": interval}
        options |= {"devices": devices, "strategy": strategy}
        run = partial(fit, guide, images, held_out, config, False, **options)
        everyone: list[Listener] = [*([ProgressBar()] if progress else []), *listeners]
        result = on_devices(run, devices, everyone, checkpoint is not None)
        _take_over(guide, result.posterior.guide)
        return result
    trials = None
    with _training(guide, images, held_out, config, progress, listeners, saving, devices, strategy) as trainer:
        if not sparsifies(guide):
            trainer.run(config.steps, "weights")
        else:
            fine_tune = round(config.fine_tune * config.steps)
            ising = config.steps - trainer.run_pilot() - fine_tune
            if isinstance(config.temperature, TemperatureSearch) and ising:
                trials = config.temperature.run(trainer, cast(Images, held_out), ising)
            else:
                trainer.run(ising, "ising")
            if fine_tune:
                guide.model.fix_masks(guide.median_masks())
                trainer.run(fine_tune, "fine-tune")
    posterior = Posterior.of(guide, names=images.names)
    if trials is not None:
        posterior = posterior.calibrate(cast(Images, held_out))
    _warn_if_nothing_is_kept(posterior, searched=trials is not None)
    _warn_if_unsettled(posterior, images)
    return FitResult(posterior, trainer.history, trials, trainer.seconds, config.model_dump(mode="json"))


def fit_path(
    guide: Guide,
    train: Source,
    validation: Source,
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
    check_kinds(guide=guide, config=config)
    images, held_out, config = read_data(guide.model, train, validation, config)
    search = config.temperature
    if not isinstance(search, TemperatureSearch):
        raise InputError(f"temperature={search}: a path goes through all temperatures; leave it 'auto'")
    for name, value, free in (("target_density", config.target_density, None), ("fine_tune", config.fine_tune, 0)):
        if value != free:
            raise InputError(f"{name}={value}: a path goes through all temperatures and densities; leave it {free!r}")
    with _training(guide, images, held_out, config, progress, listeners) as trainer:
        left = config.steps - trainer.run_pilot()
        tried = len(search.factors)
        if left < tried:
            raise InputError(
                f"steps={config.steps}, pilot={config.pilot} leave {left} for {tried} temperatures: more steps"
            )
        stops = search.follow_path(trainer, cast(Images, held_out), left // tried)
    table, facts = path_table(stops), config.model_dump(mode="json")
    return FitPath(Posterior.of(guide, names=images.names), table, stops, trainer.history, trainer.seconds, facts)


@dataclass(frozen=True)
class _Saving:
    """Whether and how a fit saves checkpoints and goes on from them; see `fit`."""

    folder: str | Path | None = None
    resume: bool = False
    interval: float = 60.0

    def checkpoints(
        self, guide: Guide, train: Labelled, validation: Images | None, config: FitConfig
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
    train: Labelled,
    validation: Images | None,
    config: FitConfig,
    progress: bool,
    listeners: Sequence[Listener],
    saving: _Saving | None = None,
    devices: int = 1,
    strategy: Any = "ddp",
) -> Iterator[Trainer]:
    """Context with a trainer on the device, and with random state, held density and temperature set for the fit."""
    ranks, model = connect(config.torch_device(), devices, strategy), guide.model
    check_share(config.batch_size, ranks.size)
    device = ranks.device
    checkpoints = saving.checkpoints(guide, train, validation, config) if saving is not None else None
    model.to(device).train()
    guide.to(device).train()
    check_together(guide, train, validation, config)
    with (
        _holding(guide, config.target_density),
        watched(ranks),
        seeded(device, seed_of(ranks, config.seed)),
        keeping_memory(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
        listening(checkpoints is not None) as told,
    ):
        wanted = config.temperature
        everyone: list[Listener] = [*([ProgressBar()] if progress else []), *listeners] if ranks.first else []
        trainer = Trainer(guide, train.to(device), validation, config, ranks, everyone, checkpoints, told)
        search = wanted if isinstance(wanted, TemperatureSearch) else None
        trainer.temperature = cast(float, wanted) if search is None else search.pilot_temperature(guide, len(train))
        before = model.fixed_masks
        with ExitStack() as at_the_end:  # all of it, whatever goes wrong
            at_the_end.push(lambda error, *_: model.fix_masks(before) if error else None)
            at_the_end.callback(model.follow, None)
            at_the_end.callback(guide.forget)
            at_the_end.callback(setattr, guide, "averaging", None)
            for listener in everyone:
                at_the_end.push(partial(_stop, listener, trainer))
            trainer.tell(Started(config.steps))
            if saving is not None and saving.resume:
                trainer.resume()
            yield trainer
            trainer.settle()
        if told.signal is not None:  # after the last step
            where = cast(_Saving, saving).folder
            raise InterruptedFitError(f"stopped after the last step; go on from the checkpoint in {where}", told.signal)
        trainer.seconds = time.perf_counter() - trainer.started


def _stop(listener: Listener, trainer: Trainer, error: type[BaseException] | None, *_: object) -> None:
    listener(Stopped(trainer.step, finished=error is None))


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


def _warn_if_nothing_is_kept(posterior: Posterior, searched: bool) -> None:
    if posterior.densities().get("median_density") == 0:
        fix = "take more steps" if searched else "have it chosen: pass validation images and leave it out"
        warnings.warn(
            f"temperature={posterior.model.temperature:g}: the median network keeps no weight that has a mask, and "
            f"tells no images apart; lower the temperature, or {fix}",
            UserWarning,
            stacklevel=3,
        )


def _warn_if_unsettled(posterior: Posterior, train: Labelled) -> None:
    likelihood = posterior.model.likelihood
    if any(True for _ in likelihood.parameters()):
        some = in_memory(train, SETTLED_IMAGES)
        some = some[torch.arange(min(SETTLED_IMAGES, len(some)), device=some.images.device)]
        said = likelihood.unsettled(posterior.plug_in_outputs(some.images), some.labels.cpu())
        if said:
            warnings.warn(f"likelihood={type(likelihood).__name__}: {said}", UserWarning, stacklevel=3)


def _take_over(guide: Guide, fitted: Guide) -> None:
    """Bring a guide and its model to the state of a fitted copy."""
    guide.load_state_dict(fitted.state_dict())
    guide.model.load_state_dict(fitted.model.state_dict())
    for part, other in ((guide, fitted), (guide.model, fitted.model)):
        set_attributes(part, attributes(other))
    guide.model.fix_masks(fitted.model.fixed_masks)
