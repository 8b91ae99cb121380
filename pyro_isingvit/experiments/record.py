"""What a run folder says of itself: ``run.json``, which names all other files, and what an unfinished run is of."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic

from ..config import Config, describe
from ..data import Data, Labelled
from ..drafts import LOCK
from ..errors import InputError
from ..files import file_digest, read_json
from .recipes import RunConfig

RUN, REPORT = "run.json", "report.json"
"""The files that name all others that were written, with their SHA-256."""

METRICS = "metrics.json"
"""The file of a run's scores on its test images, by method."""

PACKAGES = ("pyro-isingvit", "torch", "pyro-ppl", "arviz", "numpy")


class Unfinished(Config):
    """What an unfinished run is of."""

    config: dict[str, Any]
    images: str
    official: dict[str, str] = {}
    compare: bool
    log: tuple[str, ...] = ()


class RunFacts(Config):
    """The contents of ``run.json``."""

    config: dict[str, Any]
    seed: int
    images: str
    official: dict[str, str] = {}
    classes: tuple[str, ...] | None
    versions: dict[str, str]
    files: dict[str, str]


def read_facts(folder: Path) -> RunFacts:
    """The contents of ``run.json``.

    Raises:
        InputError: if it was changed, or is of another version.
    """
    try:
        return RunFacts(**read_json(folder / RUN))
    except TypeError as error:  # a name that is no string
        raise InputError(f"{folder / RUN}: {error}; fit again") from None
    except InputError as error:
        where = "" if str(folder) in str(error) else f"{folder / RUN}: "
        raise InputError(f"{where}{error}") from None


def config_of(values: Mapping[str, Any], path: Path) -> RunConfig:
    """The configuration that a file holds.

    Raises:
        InputError: if a name is unknown or a value is impossible. The message names the file.
    """
    try:
        return RunConfig.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {describe(error)}") from None


def check_images(everything: Labelled, fingerprint: str, folder: Path) -> None:
    """Check that the images of a data set are those of a run.

    Raises:
        InputError: if they are not.
    """
    if everything.fingerprint != fingerprint:
        raise InputError(
            f"run={str(folder)!r}: was fitted on other images ({fingerprint}, not {everything.fingerprint}), so "
            "that its test images cannot be told from its training images; give the data_root of those, or fit again"
        )


def official_parts(config: RunConfig, data: Data) -> dict[str, str]:
    """Fingerprints of the parts of a run that are the data set's own validation or test images, by name."""
    parts = {"validation": data.validation, "test": data.test}
    return {name: part.fingerprint for name, part in parts.items() if getattr(config, name) == "official"}


def check_official(config: RunConfig, data: Data, known: Mapping[str, str], folder: Path) -> None:
    """Check that the data set's own validation and test images are those of a run, as far as that knows them.

    Raises:
        InputError: if they are not.
    """
    for name, fingerprint in official_parts(config, data).items():
        if known.get(name, fingerprint) != fingerprint:
            raise InputError(
                f"run={str(folder)!r}: had other {name} images ({known[name]}, not {fingerprint}); give the data_root "
                "of those, or fit again"
            )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by relative path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def check_digests(folder: Path, known: Mapping[str, str]) -> None:
    """Check that files are as they were written.

    Raises:
        InputError: if one is missing or was changed.
    """
    for name, digest in known.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise InputError(f"{path}: missing; restore it, or fit again")
        if file_digest(path) != digest:
            raise InputError(f"{path}: was changed or damaged since it was written; restore it, or fit again")
