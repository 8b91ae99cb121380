"""Folders that are written whole or not at all: each is a draft beside its place until it is complete."""

import glob
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from .errors import InputError
from .files import storing, sync

LOCK = "lock"
"""Name of the file by which a process holds a folder that it writes."""

DRAFT, ASIDE, KEPT = ".draft", ".replaced", ".kept"
"""Ends of the names of a folder that is being written, of one that another takes the place of, and of one that could
not take its place and is left to the user."""


@contextmanager
def drafting(folder: Path, check: Callable[[], object]) -> Iterator[Path]:
    """Context with an empty folder beside ``folder``, which takes its place at the end, unless an exception is raised.

    Drafts that were left by a process that was killed are removed.

    Args:
        folder: the folder to write.
        check: called before the draft takes the place; raises an `InputError` if it may not, e.g. since something has
            appeared there. The draft is then kept for good, and the error names it.

    Raises:
        StorageError: if the folder cannot be written. What was there is as it was.
    """
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in _beside(folder, DRAFT):
            with suppress(filelock.Timeout), holding(left / LOCK):
                shutil.rmtree(left)
        draft = _new_name(folder, DRAFT)
        draft.mkdir()
    try:
        with storing(folder), holding(draft / LOCK):
            yield draft
            (draft / LOCK).unlink(missing_ok=True)
            try:
                check()
            except InputError as error:
                kept = draft.rename(_new_name(folder, KEPT))
                raise InputError(f"{error}; what was to be written there is in {kept}") from None
            take_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def take_place(draft: Path, folder: Path) -> None:
    """Rename a draft to a folder. What is there is set aside first, put back if that fails, and removed last."""
    aside = _new_name(folder, ASIDE)
    there = folder.exists()
    if there:
        folder.rename(aside)
    try:
        draft.rename(folder)
    except BaseException:
        if there:
            aside.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Put back what a process that was killed had set aside, if nothing took its place; remove it otherwise."""
    for aside in _beside(folder, ASIDE):
        with suppress(OSError):
            if folder.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(folder)


@contextmanager
def holding(lock: Path) -> Iterator[None]:
    """Context that holds a lock.

    Raises:
        filelock.Timeout: at once, if another process or thread holds it.
    """
    with filelock.FileLock(lock, timeout=0, thread_local=False):
        yield


def _new_name(folder: Path, end: str) -> Path:
    return folder.with_name(f".{folder.name[:100]}-{secrets.token_hex(4)}{end}")


def _beside(folder: Path, end: str) -> list[Path]:
    """What has a name of `_new_name`."""
    return list(folder.parent.glob(f".{glob.escape(folder.name[:100])}-*{end}"))
