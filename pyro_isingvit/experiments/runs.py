"""A run, from a configuration to a folder with all of its results."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data import Data, Images, Labelled
from ..drafts import drafting
from ..errors import InputError
from ..files import write, write_json
from ..inference.ranks import check_devices, launched
from ..inference.result import FitResult
from ..posterior import Posterior
from ..scores import ENSEMBLE, ISING, PLAIN, nll
from .fits import fit_deterministic, fit_ensemble, fit_ising, select_features
from .images import load, read_images, same_images
from .logs import check_logs, log_listeners
from .place import begin, check_free, continuing, resolved, working
from .recipes import RunConfig
from .record import (
    METRICS,
    RUN,
    RunFacts,
    Unfinished,
    config_of,
    digests,
    official_parts,
    versions,
)
from .scoring import Scores, score_fits


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: configuration of the run.
        data: images of the run.
        result: the fit, with its posterior.
        deterministic: the fit of the same network without masks or uncertainty, by the same recipe; None if it was not
            trained. All posteriors are calibrated on the validation images, see `Posterior.calibrate`.
        ensemble: the fits of as many such networks as a mixture has members, of which ``deterministic`` is the first;
            None without a mixture.
        selection: the fit that selected input features, see `RunConfig.select`; None if there was none.
        scores: metrics on the test images by method: ``ising`` (posterior predictive), ``median network``
            (median-probability model, whose logits are not scaled; of a mixture, the mean of those of its members) and,
            if they were trained, ``deterministic`` and ``ensemble``. ``auroc``, ``aupr`` and ``fpr95`` are those of
            entropy, which should be higher for the same images turned by 90 degrees, see
            `pyro_isingvit.diagnostics.shift.separation`.
    """

    config: RunConfig
    data: Data
    result: FitResult
    deterministic: FitResult | None
    ensemble: FitResult | None
    selection: FitResult | None
    scores: Scores


def run(
    config: RunConfig,
    out: str | Path,
    everything: Labelled | None = None,
    compare: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    interval: float = 60.0,
    devices: int = 1,
    log: Sequence[str] = (),
) -> Run:
    """Fit, evaluate on the test images, and write a run folder.

    The folder gets ``run.json`` (configuration, versions, seed, class names, fingerprint of the images, SHA-256 of all
    files), ``metrics.json``, the files of `FitResult.save` (those of the deterministic network under ``deterministic``,
    of the ensemble under ``ensemble``, and of the selection of input features under ``selection``), and the pictures
    ``training.png``, ``inclusion.png``, ``trials.png`` where the temperature was searched for, and ``features.png``
    where features were selected.

    The folder is made at once; until the run is complete, it has only the subfolder ``unfinished``, with checkpoints.
    If the process is interrupted or killed, or the disk is full, `resume_run` goes on from there.

    Args:
        config: configuration of the run.
        out: the folder to write.
        everything: images of the data set, if they have already been read.
        compare: whether to also train the deterministic network of the same recipe.
        overwrite: whether an existing run folder may be replaced, once the run is complete.
        progress: whether to show progress bars.
        interval: seconds between checkpoints.
        devices: number of devices of this machine that train together, see `fit`.
        log: loggers to write the histories of the fits to as they grow, beside the run folder; see `logs.KINDS`.

    Raises:
        InputError: if the folder exists or cannot be made, or the configuration does not fit the data.
        TrainingError: if training broke down.
        StorageError: if a file could not be written; what was trained is kept.
        InterruptedFitError: if the process was told to stop, once a checkpoint is saved.
    """
    out = resolved(out)
    if config.module is not None:
        config = config.model_copy(update={"module": config.module.recorded()})
    _check_alone(devices)
    check_logs(log, out)
    with working(out, overwrite) as work:
        if everything is None:
            everything = read_images(config)
        data = load(config, everything)
        plan = Unfinished(
            config=config.model_dump(mode="json"),
            images=everything.fingerprint,
            official=official_parts(config, data),
            compare=compare,
            log=tuple(log),
        )
        begin(work, plan.model_dump())
        return _work(work, out, config, everything, data, plan, progress, interval, devices)


def resume_run(
    folder: str | Path,
    data_root: str | None = None,
    progress: bool = True,
    interval: float = 60.0,
    devices: int = 1,
    network: str | None = None,
) -> Run:
    """Go on with a run that was interrupted, from its last checkpoint. It ends as it would have without.

    Args:
        folder: the folder of the run.
        data_root: folder of the data set's files, if it has moved.
        progress, interval, devices: see `run`; it may be another number of devices than before.
        network: ``FILE.py:FUNCTION`` of the run's network, if it is of a file; see `evaluate`.

    Raises:
        InputError: if there is no unfinished run, or the data set has other images.
        TrainingError, StorageError, InterruptedFitError: see `run`.
    """
    out = resolved(folder)
    _check_alone(devices)
    with continuing(out) as (work, facts):
        plan = Unfinished(**facts)
        config = config_of(plan.config, work).with_code(network)
        config = config if data_root is None else config.model_copy(update={"data_root": data_root})
        everything, data = same_images(config, plan, out)
        check_logs(plan.log, out)
        return _work(work, out, config, everything, data, plan, progress, interval, devices)


def _work(
    work: Path,
    out: Path,
    config: RunConfig,
    everything: Labelled,
    data: Data,
    plan: Unfinished,
    progress: bool,
    interval: float,
    devices: int,
) -> Run:
    """Train what was not trained yet, and put the finished run into its place."""

    def saving(name: str) -> dict[str, Any]:
        place, listeners = work / "checkpoints" / name, log_listeners(plan.log, out, name, config)
        saving = {"checkpoint": place, "resume": True, "interval": interval, "devices": devices}
        return saving | {"listeners": listeners}

    selection = select_features(config, data, progress, **saving("selection")) if config.select else None
    result = _fit(config, data, selection, progress, saving)
    plain = ensemble = None
    if plan.compare and config.members > 1:
        ensemble = fit_ensemble(config, data, progress, **saving("ensemble"))
        plain, ensemble = _calibrated(ensemble.member(0), data), _calibrated(ensemble, data)
    elif plan.compare:
        plain = _calibrated(fit_deterministic(config, data, progress, **saving("deterministic")), data)
    scores = score_fits({ISING: result, PLAIN: plain, ENSEMBLE: ensemble}, data.test, config)
    finished = Run(config, data, result, plain, ensemble, selection, scores)
    with drafting(out, partial(check_free, out, overwrite=True)) as draft:
        _write(finished, draft, everything)
    return finished


def _check_alone(devices: int) -> None:
    check_devices(devices, "ddp")
    if devices > 1 and launched():
        raise InputError(
            f"devices={devices} under a launcher: a run starts the processes of its devices itself; start it once, or "
            "call fit(devices=...) in the launcher's processes"
        )


def _fit(
    config: RunConfig,
    data: Data,
    selection: FitResult | None,
    progress: bool,
    saving: Callable[[str], dict[str, Any]],
) -> FitResult:
    """The fit of a run, with what was selected or with all features: what predicts the validation images better."""
    chosen: dict[str, Posterior | None] = {"ising": None}
    if selection is not None and selection.posterior.median_masks()["patch_embed"].any():
        chosen["ising of selected"] = selection.posterior  # without any feature there would be nothing to predict from
    fits = []
    for name, each in chosen.items():
        found = fit_ising(config, data, progress, each, **saving(name))
        fits.append(_calibrated(found, data))
    best = fits[0]
    if len(fits) > 1:
        best = min(fits, key=lambda result: _validation_nll(result.posterior, data.validation, config))
    seconds = sum(result.seconds for result in fits) + (0.0 if selection is None else selection.seconds)
    return replace(best, seconds=seconds)


def _validation_nll(posterior: Posterior, validation: Images, config: RunConfig) -> float:
    probs = posterior.predict(validation.images, config.draws, seed=config.fit.seed).probs
    return float(nll(probs, validation.labels.cpu()).mean())


def _calibrated(result: FitResult, data: Data) -> FitResult:
    return replace(result, posterior=result.posterior.calibrate(data.validation))


def _write(finished: Run, folder: Path, everything: Labelled) -> None:
    from ..diagnostics.plots import figure_features, figure_training, plot_inclusion, plot_path
    from ..diagnostics.plots.style import figure_of, write_figure

    result = finished.result
    result.save(folder)
    parts = {"deterministic": finished.deterministic, "ensemble": finished.ensemble, "selection": finished.selection}
    for name, part in parts.items():
        if part is not None:
            part.save(folder / name)
    if finished.selection is not None:
        write_figure(figure_features(finished.selection.posterior), folder / "features.png")
    write(folder / METRICS, json.dumps(finished.scores, indent=2) + "\n")
    write_figure(figure_training(result.history), folder / "training.png")
    if result.trials is not None:
        write_figure(figure_of(plot_path(result.trials)), folder / "trials.png")
    write_figure(figure_of(plot_inclusion(result.posterior)), folder / "inclusion.png")
    facts = RunFacts(
        config=finished.config.model_dump(mode="json"),
        seed=finished.config.fit.seed,
        images=everything.fingerprint,
        official=official_parts(finished.config, finished.data),
        classes=everything.names,
        versions=versions(),
        files=digests(folder),
    )
    write_json(folder / RUN, facts.model_dump(mode="json"))
