"""What `fit` returns: the posterior, and the log of the fit."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import pydantic

from ..config import Config
from ..errors import InputError
from ..files import file_digest, home, read_json, read_table, write_json, write_table
from ..guides import Guide
from ..posterior import Posterior
from ..saved import DESCRIPTION

LOG, HISTORY, TRIALS = "fit.json", "history.csv", "trials.csv"


def member_seed(seed: int, member: int) -> int:
    """Seed of a member of a mixture, from 0, whose fit has a seed; the first member has the same."""
    return seed + 1_000_003 * member


@dataclass(frozen=True)
class FitResult:
    """A fitted posterior, and how the fit went.

    Attributes:
        posterior: the fitted posterior; it owns its tensors.
        history: a table with a row at regular intervals: step, phase, temperature, loss (negative tempered ELBO times
            T, in nats per image), accuracy and nll (nats per image) of the median-probability model (in the pilot
            phase, with all masks on) on validation (else training) images, expected_density, median_density, seconds
            since the start. After a search for the temperature, it is the history of the training that was chosen.
            Of a mixture, it has the rows of all members, and their numbers in the column ``member``.
        trials: the trials of a search for the temperature, one row for each, see `TemperatureSearch` and
            `path.path_table`; ``chosen`` marks the one whose temperature was chosen. None without a search.
        seconds: duration of the fit.
        config: the `FitConfig`, as JSON values.
    """

    posterior: Posterior
    history: pd.DataFrame
    trials: pd.DataFrame | None = None
    seconds: float = 0.0
    config: Mapping[str, Any] = field(default_factory=dict)

    def member(self, member: int) -> Self:
        """The result of one member of a mixture, by number from 0: its posterior, history and seconds.

        Raises:
            InputError: if this is no mixture, or has no such member.
        """
        every = self.posterior.members
        if "member" not in self.history or not 0 <= member < len(every):
            raise InputError(
                f"member={member}: this result has {len(every)}" + ("; it is no mixture" * (len(every) == 1))
            )
        own = self.history[self.history["member"] == member].drop(columns="member").reset_index(drop=True)
        facts = {
            "history": own,
            "trials": self.trials if member == 0 else None,
            "seconds": float(own["seconds"].iloc[-1]),
            "config": {**self.config, "seed": member_seed(self.config["seed"], member)},
        }
        return replace(self, posterior=every[member], **facts)

    def save(self, folder: str | Path) -> None:
        """Write the files of `Posterior.save`, and ``fit.json``, ``history.csv``, and ``trials.csv`` if there are any.

        Raises:
            InputError: if the folder already holds a posterior.
        """
        folder = home(folder)
        self.posterior.save(folder)
        tables = {HISTORY: self.history} | ({} if self.trials is None else {TRIALS: self.trials})
        for name, table in tables.items():
            write_table(folder / name, table)
        digests = {name: file_digest(folder / name) for name in (DESCRIPTION, *tables)}
        write_json(folder / LOG, {"seconds": self.seconds, "config": dict(self.config), "files": digests})

    @classmethod
    def load(cls, folder: str | Path, guide: Guide | None = None) -> Self:
        """Read what `save` wrote; arguments and errors are those of `Posterior.load`."""
        folder = home(folder)
        posterior = Posterior.load(folder, guide)
        path = folder / LOG
        if not path.is_file():
            raise InputError(f"folder={str(folder)!r}: no {LOG} there; read it with Posterior.load")
        facts = read_json(path)
        try:
            log = _Log(**facts)
        except InputError as error:
            raise InputError(f"{path}: {error}; fit again") from None
        for name, digest in log.files.items():
            if not (folder / name).is_file() or file_digest(folder / name) != digest:
                raise InputError(f"{folder / name}: missing, or not of {LOG} beside it; restore it, or fit again")
        tables: dict[str, pd.DataFrame] = {
            name: read_table(folder / name) for name in (HISTORY, TRIALS) if name in log.files
        }
        if HISTORY not in tables:
            raise InputError(f"{path}: names no {HISTORY}; restore it, or fit again")
        return cls(posterior, tables[HISTORY], tables.get(TRIALS), log.seconds, log.config)


class _Log(Config):
    """The contents of ``fit.json``: duration in seconds, configuration, and SHA-256 of the files beside it."""

    seconds: pydantic.NonNegativeFloat
    config: dict[str, Any]
    files: dict[Literal["posterior.json", "history.csv", "trials.csv"], str]
