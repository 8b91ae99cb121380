"""The events of a fit, and listeners to them, such as progress bars and loggers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Started:
    """A fit of ``steps`` steps begins; the temperatures that a search tries take further steps."""

    steps: int


@dataclass(frozen=True)
class PhaseStarted:
    """A phase of ``steps`` steps begins.

    Its name is ``pilot``, ``trial``, ``path``, ``ising`` or ``fine-tune``; ``weights`` without masks.
    """

    phase: str
    temperature: float
    steps: int


@dataclass(frozen=True)
class StepTaken:
    """A step of the optimiser was taken; ``step`` counts from 1."""

    step: int


@dataclass(frozen=True)
class RowLogged:
    """A row was added to the history, see `FitResult`."""

    row: Mapping[str, Any]


@dataclass(frozen=True)
class WentBack:
    """Training was put back to the state after ``step`` steps, to try another temperature, to keep the chosen one,
    or to go on from a checkpoint."""

    step: int


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint was written after ``step`` steps."""

    step: int


@dataclass(frozen=True)
class Stopped:
    """The fit has ended after ``step`` steps; it was interrupted or broke down there, unless it is ``finished``."""

    step: int
    finished: bool = True


Event = Started | PhaseStarted | StepTaken | RowLogged | WentBack | CheckpointSaved | Stopped

Listener = Callable[[Event], None]
"""A function that is called with each event of a fit, in order. An exception that it raises ends the fit."""


class ProgressBar:
    """A listener that shows steps, loss, accuracy and density on the terminal, as long as that can be written to."""

    def __init__(self) -> None:
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._task = self._bar.add_task("", total=None)
        self._shown = True

    def __call__(self, event: Event) -> None:
        try:
            if self._shown:
                self._show(event)
        except (OSError, ValueError, SystemExit):  # closed or full; Rich ends the program for a pipe that nobody reads
            self._shown = False

    def _show(self, event: Event) -> None:
        match event:
            case Started(steps):
                self._bar.update(self._task, total=steps)
                self._bar.start()
            case StepTaken():
                self._bar.advance(self._task)
            case RowLogged(row):
                density = f"  density {row['median_density']:.0%}" if "median_density" in row else ""
                error = f"accuracy {row['accuracy']:.1%}" if "accuracy" in row else f"nll {row['nll']:.3f}"
                text = f"{row['phase']:9} loss {row['loss']:.3f}  {error}{density}"
                self._bar.update(self._task, description=text)
            case WentBack(step):
                self._bar.reset(self._task, completed=step)
            case Stopped():
                self._bar.stop()
            case PhaseStarted() | CheckpointSaved():
                pass
