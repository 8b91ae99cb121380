"""Logs of the fits of a run as they grow, by the loggers of Lightning: TensorBoard, CSV, Weights & Biases, MLflow.

They are in the folder ``logs`` beside the run folder, which all runs there share, so that their curves are seen
together. A run that is resumed or overwritten adds to them; nothing in them is ever replaced.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from ..errors import InputError
from ..inference.events import Listener
from ..inference.loggers import Logger, LoggerListener
from .recipes import RunConfig

PROJECT = "isingvit"
"""Name of the project in Weights & Biases and of the experiment in MLflow."""

LOGS = "logs"
"""Folder of the logs, beside that of a run."""

Listeners = Callable[[int | None], Sequence[Listener]]
"""Makes the listeners of a fit from the number of the member that is fitted, from 0; None if it is no mixture."""


def no_listeners(member: int | None) -> Sequence[Listener]:
    """No listeners."""
    return ()


def _tensorboard(place: Path, name: str) -> Logger:
    from lightning_fabric.loggers import TensorBoardLogger

    return TensorBoardLogger(place / "tensorboard", name)


def _csv(place: Path, name: str) -> Logger:
    from lightning_fabric.loggers import CSVLogger

    return CSVLogger(place / "csv", name, flush_logs_every_n_steps=1)


def _wandb(place: Path, name: str) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    class Ending(WandbLogger):
        """Ends its run with the fit, as the logger of the next fit of this process would go on in it."""

        def finalize(self, status: str) -> None:
            super().finalize(status)
            self.experiment.finish(int(status != "success"))

    place.mkdir(parents=True, exist_ok=True)
    return Ending(name, place, project=PROJECT, offline=True)


def _mlflow(place: Path, name: str) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow import MlflowClient

    place.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{place / 'mlflow.db'}"
    with filelock.FileLock(place / ".mlflow.lock"):  # members begin together, and one makes the tables for all
        client = MlflowClient(store)
        if client.get_experiment_by_name(PROJECT) is None:
            client.create_experiment(PROJECT, (place / "mlartifacts").as_uri())
    return MLFlowLogger(PROJECT, name, store)


@dataclass(frozen=True)
class Kind:
    """A kind of logger.

    Attributes:
        make: makes one from the folder of all logs and the name of a fit.
        packages: what has to be installed.
        extra: the extra of this package that has that.
    """

    make: Callable[[Path, str], Logger]
    packages: tuple[str, ...]
    extra: str


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind(_tensorboard, ("lightning_fabric", "tensorboard"), "loggers"),
    "csv": Kind(_csv, ("lightning_fabric",), "loggers"),
    "wandb": Kind(_wandb, ("lightning", "wandb"), "wandb"),
    "mlflow": Kind(_mlflow, ("lightning", "mlflow"), "mlflow"),
}
"""Loggers by name. Weights & Biases is used offline, and MLflow with a database in a file."""


def check_logs(kinds: Sequence[str], out: Path) -> None:
    """Check that there are loggers of some kinds, and that their logs have a place beside a run folder.

    Raises:
        InputError: if not.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"log={kind!r}: choose of {list(KINDS)}")
        missing = [name for name in KINDS[kind].packages if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"log={kind!r}: needs {missing[0]}; pip install 'pyro-isingvit[{KINDS[kind].extra}]'")
    if kinds and out.name == LOGS:
        raise InputError(f"out={str(out)!r} is where the logs of runs are put; choose another folder")


def log_listeners(kinds: Sequence[str], out: Path, fit: str, config: RunConfig) -> Listeners:
    """Makes the listeners of a fit of a run, which write its logs.

    Args:
        kinds: names of loggers, see `KINDS`.
        out: the run folder.
        fit: name of the fit.
        config: configuration of the run, which is recorded too.
    """
    return partial(_listeners, tuple(kinds), out, fit.replace(" ", "-"), config)


def _listeners(kinds: Sequence[str], out: Path, fit: str, config: RunConfig, member: int | None) -> Sequence[Listener]:
    name = f"{out.name}/{fit}{'' if member is None else f'-{member}'}"
    settings: dict[str, Any] = config.model_dump(mode="json")
    return [LoggerListener(KINDS[kind].make(out.parent / LOGS, name), settings) for kind in kinds]
