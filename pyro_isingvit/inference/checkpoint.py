"""Checkpoints of a fit: all that a continuation needs to end with the same bits as without the interruption.

A checkpoint is one file of tensors and JSON, see `pyro_isingvit.files`.
"""

import math
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, StorageError
from ..files import home, read_tensors, storing, write_tensors
from ..saved import difference

FORMAT = 1
"""Version of the checkpoints that this module writes and reads."""

KEPT = 2
"""Number of checkpoints that are kept, so that one is left if the last is damaged."""

State = dict[str, Any]
"""Tensors, numbers and text in nested mappings and lists."""


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


class Told:
    """Which signal has told the process to stop, see `listening`."""

    signal: int | None = None


@contextmanager
def listening(wanted: bool) -> Iterator[Told]:
    """Context in which the first interrupt (Ctrl-C) or SIGTERM is noted instead of obeyed; the second is obeyed.

    This is possible in the main thread alone, and signals that the program handles itself are left to it.
    """
    told = Told()
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        told.signal = number
        for one, handler in before.items():
            signal.signal(one, handler)

    if wanted and threading.current_thread() is threading.main_thread():
        for one in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(one) in (signal.SIG_DFL, signal.default_int_handler):
                before[one] = signal.signal(one, note)
    try:
        yield told
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def generators(device: torch.device) -> State:
    """The states of all generators of random numbers that training, or a user's augmentation, can use."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002, a user's code may use it
    version_, inner, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version_, torch.tensor(inner), gauss],
    }


def set_generators(states: State, device: torch.device) -> None:
    """Set what `generators` returned."""
    torch.set_rng_state(states["torch"])
    if states["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version_, inner, gauss = states["python"]
    random.setstate((version_, tuple(inner.tolist()), gauss))


def attributes(module: nn.Module) -> State:
    """Numbers and tensors that a module and its submodules keep beside their parameters and buffers."""
    return {
        name: {key: value for key, value in vars(part).items() if _is_state(value)}
        for name, part in module.named_modules()
    }


def set_attributes(module: nn.Module, values: State) -> None:
    """Set what `attributes` returned."""
    device = next((p.device for p in module.parameters()), None)
    for name, part in module.named_modules():
        for key, value in values.get(name, {}).items():
            setattr(part, key, value.to(device) if isinstance(value, Tensor) else value)


def _is_state(value: object) -> bool:
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and not value.requires_grad
    return isinstance(value, bool | int | float)


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
