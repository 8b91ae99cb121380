"""Checkpoints of a fit: all that a continuation needs to end with the same bits as without the interruption.

A checkpoint is one file of tensors and JSON, see `pyro_isingvit.files`.
"""

import math
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, StorageError
from ..files import home, read_tensors, storing, write_tensors
from ..saved import difference
from .state import State

FORMAT = 1
"""Version of the checkpoints that this module writes and reads."""

KEPT = 2
"""Number of checkpoints that are kept, so that one is left if the last is damaged."""


class Checkpoints:
    """The checkpoints of one fit, in a folder of their own.

    Args:
        folder: the folder; it is made.
        interval: seconds between checkpoints.
        fit: what the fit is of, see `FitResult.config` and `pyro_isingvit.saved.description`; compared on resuming.

    Raises:
        InputError: if ``interval`` is negative or not finite.
        StorageError: if the folder cannot be made.
    """

    def __init__(self, folder: str | Path, interval: float, fit: Mapping[str, Any]) -> None:
        if not (isinstance(interval, int | float) and 0 <= interval < math.inf):
            raise InputError(f"interval={interval!r}: seconds between checkpoints, e.g. 60")
        self.folder, self.interval, self.fit = home(folder), interval, fit
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the interval has passed."""
        return time.monotonic() - self._last >= self.interval

    def files(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)

    def save(self, state: State) -> bool:
        """Write a checkpoint, and remove the earlier ones but the last few. If the disk is full, a warning says so."""
        tensors: dict[str, Tensor] = {}
        facts = {"format": FORMAT, "fit": self.fit, "made_with": _made_with(), "state": _packed(state, tensors)}
        number = int(self.files()[0].stem) + 1 if self.files() else 0
        self._last = time.monotonic()
        try:
            write_tensors(self.folder / f"{number:08}.safetensors", tensors, facts)
        except StorageError as error:
            warnings.warn(f"checkpoint: {error}; the fit goes on without it", stacklevel=2)
            return False
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)
        return True

    def load(self) -> State | None:
        """The state of the newest checkpoint that is whole; None if there are no checkpoints.

        Raises:
            InputError: if none is whole, or they are of another fit.
        """
        files = self.files()
        for path in files:
            try:
                tensors, facts = read_tensors(path)
            except InputError as error:
                warnings.warn(f"checkpoint: {error}", stacklevel=2)
                continue
            if facts.get("format") != FORMAT:
                raise InputError(f"{path}: format={facts.get('format')!r}; this version reads {FORMAT}; fit again")
            other = difference(_plain(self.fit), facts["fit"])
            if other:
                raise InputError(f"checkpoint={str(self.folder)!r} is of another fit: {other}; resume it as it was")
            made_with = difference(_made_with(), facts["made_with"])
            if made_with:
                warnings.warn(f"checkpoint: {made_with}; the fit goes on, but not to the same bits", stacklevel=2)
            return dict(_unpacked(facts["state"], tensors))
        if files:
            raise InputError(f"checkpoint={str(self.folder)!r}: no checkpoint there is whole; fit again")
        return None


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON values, in which tensors are named; their values are added to ``tensors``."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.clone()  # two names of one storage are no safetensors
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _packed(each, tensors)] for key, each in value.items()]}  # keys may be numbers
    if isinstance(value, list | tuple):
        return [_packed(each, tensors) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpacked(each, tensors) for key, each in value["items"]}
    return value


def _plain(value: Any) -> Any:
    """A value as it is after it was written as JSON and read."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _made_with() -> dict[str, Any]:
    """What the bits of a result depend on, beside the fit itself."""
    return {
        "pyro-isingvit": version("pyro-isingvit"),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
