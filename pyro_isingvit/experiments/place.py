"""The place of a run: the folder that it will be in, and its work until it is finished.

A run folder is made at once. All work, with the checkpoints of its fits, is in its subfolder ``unfinished`` until the
run is complete; a run that is there already is left as it is until then.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from ..drafts import LOCK, holding, put_back
from ..errors import InputError, InterruptedFitError, StorageError
from ..files import home, read_json, write_json
from .record import REPORT, RUN

WORK, PLAN = "unfinished", "unfinished.json"
"""Subfolder of the work, and the file there that says what is to be run."""

LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that systems leave in any folder."""


def resolved(out: str | Path) -> Path:
    """The folder that a path of a user's means; what a process that was killed had set aside is put back."""
    out = home(out)
    try:
        out = out.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"out={str(out)!r}: {error}; choose another") from None
    if not out.name:
        raise InputError(f"out={str(out)!r} is no place for a folder; choose another")
    put_back(out)
    return out


def check_free(out: Path, overwrite: bool) -> None:
    """Check that a run may be written to a folder.

    Raises:
        InputError: if it may not: it exists and ``overwrite`` is not set, or it has anything that no run wrote.
    """
    if not out.exists():
        return
    if not overwrite:
        if is_unfinished(out):
            raise InputError(f"out={str(out)!r} has an unfinished run: resume it, or overwrite=True starts it again")
        raise InputError(f"out={str(out)!r} exists: choose another folder or overwrite=True")
    strangers = foreign(out)
    if strangers:
        raise InputError(
            f"out={str(out)!r} exists and is not only a run: no run of this version wrote {strangers[0]!r}, so it is "
            "not overwritten; choose another folder"
        )


def is_unfinished(out: Path) -> bool:
    """Whether a folder has an unfinished run, and none that is finished."""
    return (out / WORK / PLAN).is_file() and not (out / RUN).is_file()


def foreign(out: Path) -> list[str]:
    """What is in a folder that no run and no report wrote, by relative path."""
    if not out.is_dir():
        return [out.name]
    known = {RUN, REPORT}
    for name in (RUN, REPORT):
        if (out / name).is_file():
            try:
                known |= set(read_json(out / name)["files"])
            except (InputError, KeyError, TypeError):  # damaged, or of another version: what it wrote is not known
                return [name]
    every = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_symlink() or not path.is_dir()]
    ours = (out / RUN).is_file() or (out / WORK / PLAN).is_file()
    strangers = [
        str(path)
        for path in every
        if path.as_posix() not in known and path.name not in LITTER and not (ours and path.parts[0] == WORK)
    ]
    return strangers if strangers or ours else ["it"]


@contextmanager
def working(out: Path, overwrite: bool) -> Iterator[Path]:
    """Context with a new folder for the work of a run, which no other process works in; see `continuing`.

    Raises:
        InputError: see `check_free`; also if the folder cannot be made, or another process is at work there.
    """
    check_free(out, overwrite)
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=not new)
        (out / WORK).mkdir(exist_ok=True)
    except FileExistsError:
        raise InputError(f"out={str(out)!r} was made by another process meanwhile; choose another folder") from None
    except OSError as error:
        raise InputError(f"out={str(out)!r}: no folder can be made there ({error.strerror}); choose another") from None
    with _alone(out) as work:
        for left in work.iterdir():  # of a run that is given up
            if left.name != LOCK:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            yield work
        except BaseException:
            if not any(work.glob("checkpoints/*/*.safetensors")):  # nothing is lost
                shutil.rmtree(work, ignore_errors=True)
                for folder in new:  # the innermost first
                    with suppress(OSError):  # it has something else by now
                        folder.rmdir()
            raise


@contextmanager
def continuing(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Context with the folder of an unfinished run's work, and what `begin` wrote.

    Raises:
        InputError: if there is no unfinished run, or another process is at work there.
    """
    if not (out / WORK / PLAN).is_file():
        has = "is finished" if (out / RUN).is_file() else "has no unfinished run"
        raise InputError(f"resume={str(out)!r} {has}; give a folder that an interrupted 'isingvit fit' left")
    with _alone(out) as work:
        yield work, read_json(work / PLAN)


def begin(work: Path, facts: Mapping[str, Any]) -> None:
    """Write down what is to be run."""
    write_json(work / PLAN, facts)


def check_finished(folder: Path) -> None:
    """Check that a folder has a finished run.

    Raises:
        InputError: if it has none.
    """
    if (folder / RUN).is_file():
        return
    if is_unfinished(folder):
        raise InputError(f"run={str(folder)!r} is unfinished; 'isingvit fit --resume {folder}' goes on with it")
    raise InputError(f"run={str(folder)!r}: no {RUN} there; give a folder that 'isingvit fit' made")


def check_place(out: Path) -> None:
    """Check that a folder can be made there, before any work is done.

    Raises:
        InputError: if it cannot.
    """
    place = next(parent for parent in out.resolve().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        reason = "cannot be written to" if place.is_dir() else "is a file"
        raise InputError(f"out={str(out)!r}: no folder can be made there, {place} {reason}; choose another")


@contextmanager
def _alone(out: Path) -> Iterator[Path]:
    work = out / WORK
    try:
        with holding(work / LOCK):
            if not (work / LOCK).exists():  # the process that held it has just finished
                raise InputError(f"out={str(out)!r} was written by another process meanwhile; choose another folder")
            yield work
    except filelock.Timeout:
        raise InputError(f"out={str(out)!r}: another process is at work there; wait, or choose another") from None
    except StorageError as error:
        kept = f". What was trained is kept: {_go_on(out)}" if (work / PLAN).is_file() else ""
        raise StorageError(f"{error}{kept}") from None
    except InterruptedFitError as error:
        how = _go_on(out) if (work / PLAN).is_file() else "nothing was saved yet"
        raise InterruptedFitError(f"{str(error).partition(';')[0]}; {how}", error.signal) from None


def _go_on(out: Path) -> str:
    return f"'isingvit fit --resume {out}' goes on from there"
