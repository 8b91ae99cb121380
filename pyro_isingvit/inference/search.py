"""The search for the temperature of the posterior on validation images."""

import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pandas as pd
import pydantic

from ..config import Config
from ..data import Images
from ..errors import TrainingError
from ..guides import Guide
from ..models import IsingViT
from .path import Average, Candidate, Stop, candidate, path_table

if TYPE_CHECKING:
    from .trainer import Snapshot, Trainer


class TemperatureSearch(Config):
    """How the temperature of the posterior is searched for; `FitConfig` takes it as ``temperature``.

    1. The pilot phase is warm: its temperature is ``pilot`` times the number of training images (at most
       ``pilot_images``) per weight. This shrinks weights, so that they do not overfit before their masks are learned.
    2. A short path goes through rising temperatures, ``factors`` times the number of training images per weight. Each
       starts where the one before ended. The path ends once the validation NLL exceeds ``patience`` times its minimum.
    3. Whole Ising phases, each from the end of the pilot phase, are run at the temperature with the least NLL on the
       path, then at hotter ones as long as the NLL at their end falls; if no hotter one was better, at colder ones as
       long as it falls. The path alone cannot decide: after its few steps, cold temperatures have not overfitted yet,
       and hot ones have neither lost all their weights nor recovered from the loss.

    Every NLL is that of calibrated predictions, see `Posterior.calibrate`.

    Attributes:
        rule: ``"least_nll"``, as above; or ``"sparsest"``: step 3 continues to hotter temperatures as long as the NLL
            stays within one standard error of the least, and the hottest of these is chosen.
        factors: temperatures to try, in multiples of the number of training images per weight, rising.
        pilot: temperature of the pilot phase, in the same multiples.
        pilot_images: largest number of training images that counts for the temperature of the pilot phase.
        share: steps of the short path, as a share of those of an Ising phase.
        position: point of the learning rate's schedule, as a share of the steps, at which the rate is held along the
            path by guides that update masks in closed form: late enough that the noise of single steps is smaller than
            the differences between temperatures. For other guides the rate is held where the pilot phase left it.
        snapshots: number of states that are averaged at each temperature of a path.
        patience: the short path ends once the validation NLL exceeds its minimum by this factor.
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
    share: float = pydantic.Field(default=0.2, gt=0, le=1)
    position: float = pydantic.Field(default=0.8, ge=0, le=1)
    snapshots: pydantic.PositiveInt = 8
    patience: float = pydantic.Field(default=1.2, ge=1)
    draws: pydantic.PositiveInt = 20

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

    def follow_path(self, trainer: "Trainer", validation: Images, steps: int, patience: float) -> list[Stop]:
        """Train through rising temperatures, each scored on the validation images.

        Hotter means fewer weights. Each temperature starts where the one before ended, so one fit gives the whole curve
        of NLL against density, as a lasso path does. The learning rate is held, and each temperature is scored at the
        average of the parameters over its second half, since single states vary by more than temperatures differ.

        Args:
            trainer: at the end of the pilot phase; it is left at the end of the path.
            validation: held-out images.
            steps: number of steps at each temperature.
            patience: the path ends once the validation NLL exceeds its minimum by this factor, or training breaks down.

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
            if found.row["nll"] > patience * min(stop.row["nll"] for stop in stops):
                break
        return stops

    def run(self, trainer: "Trainer", validation: Images, steps: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Run the short path and the whole Ising phases, steps 2 and 3 of the search.

        Args:
            trainer: at the end of the pilot phase; it is left at the end of the Ising phase that was chosen.
            validation: held-out images.
            steps: number of steps of an Ising phase.

        Returns:
            The `path_table` of the short path, and that of the ends of the Ising phases from cold to hot, where the
            column ``chosen`` marks the one that was chosen.

        Raises:
            TrainingError: if training breaks down at the first temperature of the path, or in the first Ising phase. A
                later one that breaks down is not chosen.
        """
        start, each = trainer.snapshot(), max(1, round(self.share * steps / len(self.factors)))
        path = path_table(self.follow_path(trainer, validation, each, self.patience))
        phases = _IsingPhases(self, trainer, validation, start, steps, int(path["least_nll"].to_numpy().argmax()))
        return path, phases.run()


class _IsingPhases:
    """Whole Ising phases at one temperature after another, as long as the rule permits; see `TemperatureSearch`."""

    def __init__(
        self,
        search: TemperatureSearch,
        trainer: "Trainer",
        validation: Images,
        start: "Snapshot",
        steps: int,
        first: int,
    ) -> None:
        self.search, self.trainer, self.validation = search, trainer, validation
        self.start, self.steps, self.first = start, steps, first
        self.temperatures = search.temperatures(trainer.guide.model, len(trainer.train))
        self.ends: dict[int, tuple[Candidate, Snapshot]] = {}

    def run(self) -> pd.DataFrame:
        """Run the phases, restore the end of the chosen one, and return their table."""
        for i in range(self.first, len(self.temperatures)):
            if not self._pays(i):
                break
        if self._table()["least_nll"][self.first]:
            for i in reversed(range(self.first)):
                if not self._pays(i):
                    break
        chosen = max(i for i in self.ends if self._within(i))
        self.trainer.go_back(self.ends[chosen][1])
        self.trainer.temperature = self.temperatures[chosen]
        return self._table().assign(chosen=lambda table: table.index == chosen).reset_index(drop=True)

    def _pays(self, i: int) -> bool:
        self.trainer.go_back(self.start)
        self.trainer.temperature = self.temperatures[i]
        try:
            self.trainer.run(self.steps, "ising")
            found = candidate(self.trainer.guide, self.validation, self.search.draws)
        except TrainingError:
            if i == self.first:
                raise
            return False
        self.ends[i] = found, self.trainer.snapshot()
        return self._within(i)

    def _within(self, i: int) -> bool:
        table, sparsest = self._table(), self.search.rule == "sparsest"
        slack = table["se"][i] if sparsest and i >= self.first else 0
        return bool(table["nll"][i] <= table["nll"].min() + slack)

    def _table(self) -> pd.DataFrame:
        order = sorted(self.ends)
        return path_table([self.ends[i][0] for i in order]).set_index(pd.Index(order))


def _weights(model: IsingViT) -> int:
    return sum(site.numel for site in model.sites)
