"""The search for the temperature of the posterior on validation images."""

import copy
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pandas as pd
import pydantic

from ..config import Config
from ..data import Images
from ..draws import MOST_DRAWS
from ..errors import TrainingError
from ..guides import Guide
from ..models import IsingViT
from .path import Average, Candidate, Stop, candidate, path_table
from .state import Snapshot

if TYPE_CHECKING:
    from .trainer import Trainer

LEAST = 250
"""Least number of steps of a trial, unless the Ising phase has fewer: masks and curvature take hundreds to settle."""

MOST = 5
"""Number of trials after which a search tries no temperature between those that it has."""


class TemperatureSearch(Config):
    """How the temperature of the posterior is searched for; `FitConfig` takes it as ``temperature``.

    1. The pilot phase is warm: its temperature is ``pilot`` times the number of training images (at most
       ``pilot_images``) per weight. This shrinks weights, so that they do not overfit before their masks are learned.
    2. Trials, each from the end of the pilot phase: Ising phases that take ``share`` of the steps, in which the
       learning rate falls to zero as in a whole one. Three are around the middle of the temperatures, a decade
       apart; more follow on the side of the best as long as the NLL at their end falls. Up to `MOST` trials, the
       temperatures beside the best are tried as well, half a decade from it.
    3. The whole Ising phase at the temperature of the best trial.

    Every NLL is that of calibrated predictions of the validation images, see `Posterior.calibrate`.

    Attributes:
        rule: ``"least_nll"``, as above; or ``"sparsest"``: trials go on to hotter temperatures as long as the NLL stays
            within one standard error of the least, and the hottest of these is chosen.
        factors: temperatures, in multiples of the number of training images per weight, rising. Trials take every
            second of them, and then those beside the best; `fit_path` all.
        pilot: temperature of the pilot phase, in the same multiples.
        pilot_images: largest number of training images that counts for the temperature of the pilot phase.
        share: steps of a trial, as a share of those of the Ising phase; but they are at least `LEAST`.
        position: point of the learning rate's schedule, as a share of the steps, at which `fit_path` holds the rate
            for guides that update masks in closed form: late enough that the noise of single steps is smaller than
            the differences between temperatures. For other guides the rate is held where the pilot phase left it.
        snapshots: number of states that `fit_path` averages at each temperature.
        draws: number of posterior draws for each validation NLL.

    Raises:
        InputError: if a value is out of range, or ``factors`` do not rise.
    """

    rule: Literal["least_nll", "sparsest"] = "least_nll"
    factors: Annotated[tuple[pydantic.PositiveFloat, ...], pydantic.Field(min_length=1)] = (
        *(0.005, 0.016, 0.05, 0.16),
        *(0.5, 1.6, 5.0, 16.0),
    )
    pilot: pydantic.PositiveFloat = 0.5
    pilot_images: pydantic.PositiveInt = 300
    share: float = pydantic.Field(default=0.125, gt=0, le=1)
    position: float = pydantic.Field(default=0.8, ge=0, le=1)
    snapshots: int = pydantic.Field(default=8, ge=1, le=1000)
    draws: int = pydantic.Field(default=20, ge=1, le=MOST_DRAWS)

    @pydantic.model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.factors) != sorted(set(self.factors)):
            raise ValueError(f"factors={self.factors}: must rise from cold to hot")
        return self

    def temperatures(self, model: IsingViT, num_data: int) -> list[float]:
        """The temperatures of the posterior to try, for a model and a number of training images."""
        return [factor * num_data / _weights(model) for factor in self.factors]

    def pilot_temperature(self, guide: Guide, num_data: int) -> float:
        """Temperature of the pilot phase.

        For a guide without masks it is the coldest of the path, since such a guide would prune weights in a warm phase.
        """
        warm = self.pilot * min(num_data, self.pilot_images) / _weights(guide.model)
        return warm if guide.mask_shapes else self.temperatures(guide.model, num_data)[0]

    def follow_path(self, trainer: "Trainer", validation: Images, steps: int) -> list[Stop]:
        """Train through rising temperatures, each scored on the validation images.

        Hotter means fewer weights. Each temperature starts where the one before ended, so one fit gives the whole curve
        of NLL against density, as a lasso path does. The learning rate is held, and each temperature is scored at the
        average of the parameters over its second half, since single states vary by more than temperatures differ.

        Args:
            trainer: at the end of the pilot phase; it is left at the end of the path.
            validation: held-out images.
            steps: number of steps at each temperature. If training breaks down at one, the path ends before it.

        Raises:
            TrainingError: if training breaks down at the first temperature.
        """
        model, guide = trainer.guide.model, trainer.guide
        parts: tuple[Any, Any] = model, guide
        trainer.stride = 0.0
        if guide.closed_form:
            trainer.position = max(trainer.position, self.position * trainer.config.steps)
        stops: list[Stop] = []
        for temperature in self.temperatures(model, len(trainer.train)):
            trainer.temperature = temperature
            average = Average(parts, steps, self.snapshots)
            try:
                trainer.run(steps, "path", average)
                states = [copy.deepcopy(part.state_dict()) for part in parts]
                for part, state in zip(parts, average.states, strict=True):
                    part.load_state_dict(state)
                found = candidate(guide, validation, self.draws)
            except TrainingError:
                if not stops:
                    raise
                break
            of_model, of_guide = average.states
            stops.append(Stop(found.nll, found.row, (of_model, of_guide)))
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)
        return stops

    def run(self, trainer: "Trainer", validation: Images, steps: int) -> pd.DataFrame | None:
        """Run the trials and the Ising phase, steps 2 and 3 of the search.

        Args:
            trainer: at the end of the pilot phase; it is left at the end of the Ising phase.
            validation: held-out images.
            steps: number of steps of the Ising phase.

        Returns:
            The trials, see `try_temperatures`.

        Raises:
            TrainingError: if training breaks down in the first trial or in the Ising phase. A later trial that breaks
                down is not chosen.
        """
        trials = self.try_temperatures(trainer, validation, steps)
        trainer.run(steps, "ising")
        return trials

    def try_temperatures(self, trainer: "Trainer", validation: Images, steps: int) -> pd.DataFrame | None:
        """Run the trials, and go back to where they began, at the temperature that was chosen.

        Arguments and errors are those of `run`.

        Returns:
            The `path_table` of the trials from cold to hot, where the column ``chosen`` marks the one that was chosen;
            None if there were none, since another fit has found the temperature.
        """
        return _Trials(self, trainer, validation, steps).run()


class _Trials:
    """Short Ising phases at one temperature after another, as long as the rule permits; see `TemperatureSearch`."""

    def __init__(self, search: TemperatureSearch, trainer: "Trainer", validation: Images, steps: int) -> None:
        self.search, self.trainer, self.validation = search, trainer, validation
        self.start = Snapshot(**trainer.remember("start", lambda: vars(trainer.snapshot())))
        self.temperatures = search.temperatures(trainer.guide.model, len(trainer.train))
        self.first, self.last = (len(self.temperatures) - 1) // 2, len(self.temperatures) - 1
        self.steps = min(steps, max(LEAST, round(search.share * steps)))
        self.stride = steps / self.steps
        self.ends: dict[int, Candidate | None] = {}  # None for a trial that broke down

    def run(self) -> pd.DataFrame:
        """Run the trials, go back to the start at the temperature of the best, and return their table."""
        for i in (self.first, self.first - 2, self.first + 2):
            self._try(i)
        while (further := self._next()) is not None:
            self._try(further)
        while len(self.ends) < MOST and (beside := self._beside()) is not None:
            self._try(beside)
        chosen = self._chosen()
        self.trainer.go_back(self.start)
        self.trainer.temperature = self.temperatures[chosen]
        return self._table().assign(chosen=lambda table: table.index == chosen).reset_index(drop=True)

    def _try(self, i: int) -> None:
        i = min(max(i, 0), self.last)
        if i in self.ends:
            return
        self.trainer.go_back(self.start)
        self.trainer.temperature, self.trainer.stride = self.temperatures[i], self.stride
        end = self.trainer.remember(f"trial {i}", lambda: self._end(i))
        self.ends[i] = None if end is None else Candidate(**end)

    def _end(self, i: int) -> dict[str, Any] | None:
        """The scores at the end of a trial, see `Candidate`; None if it broke down, unless it is the first."""
        try:
            self.trainer.run(self.steps, "trial", name=f"trial {i}")
            return vars(candidate(self.trainer.guide, self.validation, self.search.draws))
        except TrainingError:
            if i == self.first:
                raise
            return None

    def _next(self) -> int | None:
        """The temperature to try next; None if there is none."""
        table, hottest, coldest = self._table(), max(self.ends), min(self.ends)
        least = int(table["nll"].idxmin())
        if hottest < self.last and self.ends[hottest] is not None and self._within(hottest):
            return hottest + 2
        return coldest - 2 if coldest > 0 and coldest == least else None

    def _beside(self) -> int | None:
        """A temperature beside the chosen one that was not tried, on the better side first; None if there is none."""
        table, chosen = self._table(), self._chosen()
        beside = [i for i in (chosen - 1, chosen + 1) if 0 <= i <= self.last and i not in self.ends]
        return min(beside, key=lambda i: float(table["nll"].get(2 * i - chosen, math.inf)), default=None)

    def _chosen(self) -> int:
        return max(i for i in self._table().index if self._within(i))

    def _within(self, i: int) -> bool:
        """Whether the rule may choose a temperature."""
        table = self._table()
        slack = table["se"][i] if self.search.rule == "sparsest" else 0
        return bool(table["nll"][i] <= table["nll"].min() + slack)

    def _table(self) -> pd.DataFrame:
        done = {i: end for i, end in sorted(self.ends.items()) if end is not None}
        return path_table(list(done.values())).set_index(pd.Index(list(done)))


def _weights(model: IsingViT) -> int:
    return sum(site.numel for site in model.sites)
