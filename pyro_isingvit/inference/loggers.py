"""Loggers of experiments, such as TensorBoard, as listeners to a fit."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from .events import Event, PhaseStarted, RowLogged, Stopped

TRIAL = "trial"
"""Phase of the trials of a search, after each of which training goes back to where the trial began."""


class Logger(Protocol):
    """What Lightning's loggers have in common, see `lightning_fabric.loggers.Logger`."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Record settings by name."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers by name."""

    def finalize(self, status: str) -> None:
        """Write what is left; ``status`` is ``"success"`` or ``"failed"``."""


class LoggerListener:
    """A listener that passes the rows of the history of a fit on to a logger.

    All curves go forward in steps. Numbers of the training that a fit ends with have the names of the columns of
    `FitResult.history`, such as ``nll``, and are equal to them. Those of the trials of a search for the temperature
    have the temperature in front, such as ``trial-0.002/nll``, as every trial begins at the same step.

    The logger is first used when there is a row, so that a fit that was finished before an interruption leaves no log
    when it is resumed. It may be used in one fit only.

    Args:
        logger: any object with Lightning's logger interface: ``TensorBoardLogger`` and ``CSVLogger`` of
            ``lightning_fabric.loggers``, those of ``lightning.pytorch.loggers``, or your own.
        settings: settings to record before the first row, by name; they may be nested.
    """

    def __init__(self, logger: Logger, settings: Mapping[str, Any] | None = None) -> None:
        self._logger, self._settings = logger, dict(settings or {})
        self._prefix, self._used = "", False

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseStarted(phase, temperature):
                self._prefix = f"{TRIAL}-{temperature:.2g}/" if phase == TRIAL else ""
            case RowLogged(row):
                self._log(row)
            case Stopped(_, finished) if self._used:
                self._logger.finalize("success" if finished else "failed")
            case _:
                pass

    def _log(self, row: Mapping[str, Any]) -> None:
        if self._settings and not self._used:
            with suppress(NotImplementedError):  # a CSVLogger has no place for settings
                self._logger.log_hyperparams(self._settings)
        self._used = True
        numbers = {f"{self._prefix}{name}": row[name] for name in row if name not in ("step", "phase")}
        self._logger.log_metrics(numbers, row["step"])
