"""What `fit` returns: the posterior, and the log of the fit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd

from ..errors import InputError
from ..guides import Guide
from ..posterior import Posterior

LOG, HISTORY, TRIALS = "fit.json", "history.csv", "trials.csv"


@dataclass(frozen=True)
class FitResult:
    """A fitted posterior, and how the fit went.

    Attributes:
        posterior: the fitted posterior; it owns its tensors.
        history: a table with a row at regular intervals: step, phase, temperature, loss (negative tempered ELBO times
            T, in nats per image), accuracy and nll (nats per image) of the median-probability model (in the pilot
            phase, with all masks on) on validation (else training) images, expected_density, median_density, seconds
            since the start. After a search for the temperature, it is the history of the training that was chosen.
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

    def save(self, folder: str | Path) -> None:
        """Write the files of `Posterior.save`, and ``fit.json``, ``history.csv``, and ``trials.csv`` if there are any.

        Raises:
            InputError: if the folder already holds a posterior.
        """
        folder = Path(folder)
        self.posterior.save(folder)
        facts = {"seconds": self.seconds, "config": dict(self.config)}
        (folder / LOG).write_text(json.dumps(facts, indent=2) + "\n")
        self.history.to_csv(folder / HISTORY, index=False)
        if self.trials is not None:
            self.trials.to_csv(folder / TRIALS, index=False)

    @classmethod
    def load(cls, folder: str | Path, guide: Guide | None = None) -> Self:
        """Read what `save` wrote; arguments and errors are those of `Posterior.load`."""
        folder = Path(folder)
        posterior = Posterior.load(folder, guide)
        for name in (LOG, HISTORY):
            if not (folder / name).is_file():
                raise InputError(f"folder={str(folder)!r}: no {name} there; read it with Posterior.load")
        try:
            facts = json.loads((folder / LOG).read_text())
            seconds, config = facts["seconds"], facts["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / LOG}: not the log of a fit ({error!r}); fit again") from None
        trials = _read(folder / TRIALS) if (folder / TRIALS).is_file() else None
        return cls(posterior, _read(folder / HISTORY), trials, seconds, config)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a table ({' '.join(str(error).split())}); fit again") from None
