"""Runs that are finished: read again, evaluated, and reported on."""

from pathlib import Path

from ..data import Data
from ..errors import InputError
from ..files import home
from ..inference.result import FitResult
from ..scores import ENSEMBLE, ISING, PLAIN
from .fits import build, build_deterministic
from .images import same_images
from .place import check_finished
from .recipes import RunConfig
from .record import RUN, RunFacts, check_digests, config_of, read_facts
from .runs import Run
from .scoring import score_fits


def evaluate(
    folder: str | Path, data_root: str | None = None, draws: int | None = None, network: str | None = None
) -> Run:
    """Evaluate a run again on its test images, from its folder.

    Args:
        folder: a run folder that `run` made.
        data_root: folder of the data set's files, if it has moved.
        draws: number of posterior draws; that of the run if None.
        network: ``FILE.py:FUNCTION`` of the run's network, if it is of a file: a run holds no code, and none is run
            because a folder names it.

    Raises:
        InputError: if the folder is not a run folder or is damaged, the data set has other images than the run, or its
            network is of a file that is not given or has changed.
    """
    config, data, result = open_run(folder, data_root, draws, network)
    point = None if config.module is None else build_deterministic(_without_download(config))
    plain, ensemble, selection = (
        FitResult.load(part, point) if part.is_dir() else None
        for part in (home(folder) / name for name in ("deterministic", "ensemble", "selection"))
    )
    scores = score_fits({ISING: result, PLAIN: plain, ENSEMBLE: ensemble}, data.test, config)
    return Run(config, data, result, plain, ensemble, selection, scores)


def open_run(
    folder: str | Path, data_root: str | None = None, draws: int | None = None, network: str | None = None
) -> tuple[RunConfig, Data, FitResult]:
    """Configuration, images and fit of a run folder; see `evaluate`."""
    config, facts, result = open_fit(folder, data_root, draws, network)
    return config, same_images(config, facts, home(folder))[1], result


def open_fit(
    folder: str | Path, data_root: str | None = None, draws: int | None = None, network: str | None = None
) -> tuple[RunConfig, RunFacts, FitResult]:
    """Configuration, facts and fit of a run folder, see `evaluate`; its data set is not read."""
    folder = home(folder)
    check_finished(folder)
    facts = read_facts(folder)
    config = config_of(facts.config, folder / RUN)
    if config.fit.seed != facts.seed:
        raise InputError(f"{folder / RUN}: seed={facts.seed}, but its fit.seed={config.fit.seed}; restore it")
    check_digests(folder, facts.files)
    changes = {"data_root": data_root, "draws": draws}
    config = config.model_copy(update={name: value for name, value in changes.items() if value is not None})
    config = config.with_code(network)
    guide = None if config.module is None else build(_without_download(config))
    return config, facts, FitResult.load(folder, guide)


def _without_download(config: RunConfig) -> RunConfig:
    """The configuration of networks whose weights are read from a run."""
    if config.module is None:
        return config
    return config.model_copy(update={"module": config.module.model_copy(update={"pretrained": False})})


def report(
    folder: str | Path,
    data_root: str | None = None,
    draws: int | None = None,
    progress: bool = True,
    network: str | None = None,
) -> Path:
    """Write ``report.html`` and its pictures, under ``figures``, into a run folder; an earlier report is replaced.

    Args:
        folder, data_root, draws, network: see `evaluate`.
        progress: whether to show a progress bar.

    Returns:
        Path of the page.

    Raises:
        InputError: see `evaluate`.
    """
    from ..diagnostics.findings import examine
    from ..diagnostics.report import check_pictures, write_report

    folder = home(folder)
    check_pictures(folder)
    again = evaluate(folder, data_root, draws, network)
    facts = read_facts(folder).model_dump()
    findings = examine(
        again.result,
        again.data,
        again.deterministic,
        again.scores,
        again.config.draws,
        again.config.fit.seed,
        progress,
        again.selection,
    )
    return write_report(findings, folder, facts)
