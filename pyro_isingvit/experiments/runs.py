"""A run, from a configuration to a folder with all of its results."""

import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic
import torch

from ..config import describe
from ..data import Data, Images, read, split
from ..data.folders import Part
from ..errors import InputError
from ..inference.fit import fit
from ..inference.result import FitResult
from ..posterior import Posterior
from ..scores import nll
from .methods import build, fit_deterministic, select_features
from .recipes import RunConfig

PACKAGES = ("pyro-isingvit", "torch", "pyro-ppl", "arviz", "numpy")

Scores = dict[str, dict[str, float]]
"""Metrics by method."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: configuration of the run.
        data: images of the run.
        result: the fit, with its posterior.
        deterministic: the fit of the same network without masks or uncertainty, by the same recipe; None if it was not
            trained. Both posteriors are calibrated on the validation images, see `Posterior.calibrate`.
        selection: the fit that selected input features, see `RunConfig.select`; None if there was none.
        scores: metrics on the test images by method: ``ising`` (posterior predictive), ``median network``
            (median-probability model, a single network whose logits are not scaled) and, if it was trained,
            ``deterministic``.
    """

    config: RunConfig
    data: Data
    result: FitResult
    deterministic: FitResult | None
    selection: FitResult | None
    scores: Scores


def run(
    config: RunConfig,
    out: str | Path,
    everything: Images | None = None,
    compare: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Fit, evaluate on the test images, and write a run folder.

    The folder gets ``run.json`` (configuration, versions, seed, fingerprint of the images), ``metrics.json``, the files
    of `FitResult.save` (those of the deterministic network under ``deterministic``, those of the selection of input
    features under ``selection``), and the pictures ``training.png``, ``inclusion.png``, ``trials.png`` where the
    temperature was searched for, and ``features.png`` where features were selected. The folder appears only when it is
    complete.

    Args:
        config: configuration of the run.
        out: the folder to write.
        everything: images of the data set, if they have already been read.
        compare: whether to also train the deterministic network of the same recipe.
        overwrite: whether an existing run folder may be replaced, once the run is complete.
        progress: whether to show progress bars.

    Raises:
        InputError: if the folder exists or cannot be made, or the configuration does not fit the data.
        TrainingError: if training broke down.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise InputError(f"out={str(out)!r} exists: choose another folder or overwrite=True")
    if out.exists() and not (out / "run.json").is_file():
        raise InputError(f"out={str(out)!r} exists and is no run folder, so it is not overwritten: choose another")
    check_place(out)
    if everything is None:
        everything = read(config.dataset, config.data_root, image_size=config.image_size)
    data = load(config, everything)
    selection = select_features(config, data, progress) if config.select else None
    result = _fit(config, data, selection, progress)
    plain = _calibrated(fit_deterministic(config, data, progress), data) if compare else None
    finished = Run(config, data, result, plain, selection, _scores(result, plain, data.test, config))
    _write(finished, out, everything.fingerprint)
    return finished


def evaluate(folder: str | Path, data_root: str | None = None, draws: int | None = None) -> Run:
    """Evaluate a run again on its test images, from its folder.

    Args:
        folder: a run folder that `run` made.
        data_root: folder of the data set's files, if it has moved.
        draws: number of posterior draws; that of the run if None.

    Raises:
        InputError: if the folder is not a run folder or is damaged, or the data set has other images than the run.
    """
    config, data, result = open_run(folder, data_root, draws)
    deterministic, selection = (
        FitResult.load(part) if part.is_dir() else None
        for part in (Path(folder) / "deterministic", Path(folder) / "selection")
    )
    return Run(config, data, result, deterministic, selection, _scores(result, deterministic, data.test, config))


def open_run(
    folder: str | Path, data_root: str | None = None, draws: int | None = None
) -> tuple[RunConfig, Data, FitResult]:
    """Configuration, images and fit of a run folder; see `evaluate`."""
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise InputError(f"run={str(folder)!r}: no run.json there; give a folder that 'isingvit fit' made")
    try:
        facts = json.loads((folder / "run.json").read_text())
        config = RunConfig.model_validate(facts["config"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'run.json'}: not a run's configuration ({error!r}); fit again") from None
    except pydantic.ValidationError as error:
        raise InputError(f"{folder / 'run.json'}: {describe(error)}") from None
    changes = {"data_root": data_root, "draws": draws}
    config = config.model_copy(update={name: value for name, value in changes.items() if value is not None})
    everything = read(config.dataset, config.data_root, image_size=config.image_size)
    if facts.get("images", everything.fingerprint) != everything.fingerprint:
        raise InputError(
            f"run={str(folder)!r}: was fitted on other images ({facts['images']}, not {everything.fingerprint}), so "
            "that its test images cannot be told from its training images; give the data_root of those, or fit again"
        )
    return config, load(config, everything), FitResult.load(folder)


def report(folder: str | Path, data_root: str | None = None, draws: int | None = None, progress: bool = True) -> Path:
    """Write ``report.html`` and its pictures, under ``figures``, into a run folder; an earlier report is replaced.

    Args:
        folder, data_root, draws: see `evaluate`.
        progress: whether to show a progress bar.

    Returns:
        Path of the page.

    Raises:
        InputError: see `evaluate`.
    """
    from ..diagnostics.findings import examine
    from ..diagnostics.report import write_report

    again = evaluate(folder, data_root, draws)
    facts = json.loads((Path(folder) / "run.json").read_text())
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
    return write_report(findings, Path(folder), facts)


def load(config: RunConfig, everything: Images, download: bool = False) -> Data:
    """Split the images of a run into training, validation and test images.

    Args:
        config: configuration of the run.
        everything: training images of the data set.
        download: whether missing files are downloaded.

    Raises:
        InputError: if the official test images cannot be read, or there are not enough images.
    """

    def own(part: Part, given: int | str | None) -> int | Images | None:
        if isinstance(given, str):
            return read(config.dataset, config.data_root, part, download, config.image_size)
        return given

    test, validation = own("test", config.test), own("validation", config.validation)
    return split(everything, config.train, test, validation, config.fit.seed, config.balanced)


def check_place(out: Path) -> None:
    """Check that a folder can be made there, before any work is done.

    Raises:
        InputError: if it cannot.
    """
    place = next(parent for parent in out.resolve().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        reason = "cannot be written to" if place.is_dir() else "is a file"
        raise InputError(f"out={str(out)!r}: no folder can be made there, {place} {reason}; choose another")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _fit(config: RunConfig, data: Data, selection: FitResult | None, progress: bool) -> FitResult:
    """The fit of a run, with what was selected or with all features: what predicts the validation images better."""
    chosen: list[Posterior | None] = [None]
    if selection is not None and selection.posterior.median_masks()["patch_embed"].any():
        chosen.append(selection.posterior)  # without any feature there would be nothing to predict from
    fits = [
        _calibrated(fit(build(config, each), data.train, data.validation, config.fit, progress), data)
        for each in chosen
    ]
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


def _metrics(probs: torch.Tensor, test: Images) -> dict[str, float]:
    from ..diagnostics.calibration import metrics  # torchmetrics takes seconds to import

    return metrics(probs, test.labels)


def _scores(result: FitResult, plain: FitResult | None, test: Images, config: RunConfig) -> Scores:
    shares = result.posterior.densities()
    density, expected = shares["median_density"], shares["expected_density"]
    both = {"density": density, "expected_density": expected, "seconds": result.seconds}
    alone = {"density": density, "expected_density": density, "seconds": result.seconds}
    mixture = result.posterior.predict(test.images, config.draws, seed=config.fit.seed).probs
    scores = {
        "ising": _metrics(mixture, test) | both,
        "median network": _metrics(result.posterior.predict_plug_in(test.images), test) | alone,
    }
    if plain is not None:
        whole = {"density": 1.0, "expected_density": 1.0, "seconds": plain.seconds}
        scores["deterministic"] = _metrics(plain.posterior.predict(test.images, 1).probs, test) | whole
    return scores


def _write(finished: Run, out: Path, images: str) -> None:
    from ..diagnostics.plots import figure_features, figure_training, plot_inclusion, plot_path
    from ..diagnostics.plots.style import figure_of

    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    draft.chmod(0o755)
    result = finished.result
    result.save(draft)
    if finished.deterministic is not None:
        finished.deterministic.save(draft / "deterministic")
    if finished.selection is not None:
        finished.selection.save(draft / "selection")
        figure_features(finished.selection.posterior).savefig(draft / "features.png", dpi=150)
    facts: dict[str, Any] = {
        "config": finished.config.model_dump(mode="json"),
        "seed": finished.config.fit.seed,
        "images": images,
        "versions": versions(),
    }
    (draft / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    (draft / "metrics.json").write_text(json.dumps(finished.scores, indent=2) + "\n")
    figure_training(result.history).savefig(draft / "training.png", dpi=150)
    if result.trials is not None:
        figure_of(plot_path(result.trials)).savefig(draft / "trials.png", dpi=150)
    figure_of(plot_inclusion(result.posterior)).savefig(draft / "inclusion.png", dpi=150)
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)
