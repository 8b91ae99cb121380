"""A warm-started path of rising temperatures: the curve of validation scores against density from one fit."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
from torch import Tensor, nn

from ..data import Images
from ..errors import InputError
from ..guides import Guide
from ..posterior import Posterior
from ..scores import mean_scores, nll

Mark = Literal["least_nll", "sparsest"]
"""A column of `path_table` that marks a row."""


@dataclass(frozen=True)
class Candidate:
    """A temperature of the posterior, and the scores of the posterior on the validation images.

    Attributes:
        nll: negative log-likelihood of each image, (n,), in nats.
        row: a row of a table: temperature, logit_scale, nll, brier, accuracy, expected_density, median_density.
    """

    nll: Tensor
    row: dict[str, float]

    @property
    def temperature(self) -> float:
        """Temperature of the posterior."""
        return self.row["temperature"]


@dataclass(frozen=True)
class Stop(Candidate):
    """A temperature of a path.

    Attributes:
        states: states of model and guide, averaged over the second half of the steps at this temperature.
    """

    states: tuple[dict[str, Tensor], dict[str, Tensor]]

    def posterior(self, template: Posterior) -> Posterior:
        """The calibrated posterior at this temperature: a copy of the template's guide in these states."""
        guide = copy.deepcopy(template.guide)
        of_model, of_guide = self.states
        guide.model.load_state_dict(of_model)
        guide.load_state_dict(of_guide)
        guide.model.temperature = self.temperature
        return Posterior((guide,), self.row["logit_scale"], template.names)


def candidate(guide: Guide, validation: Images, draws: int) -> Candidate:
    """The posterior of a guide as it is now, scored on validation images after calibration on them.

    Without calibration, a temperature would be chosen for how confident its predictions are, which the logit scale can
    change, rather than for what they are.

    Raises:
        TrainingError: if the NLL is not finite.
    """
    labels = validation.labels.cpu()
    posterior, probs = Posterior((guide,)).calibrate_and_predict(validation, draws)
    scores = mean_scores(probs, labels)
    row = {"temperature": guide.model.temperature, "logit_scale": posterior.logit_scale}
    row |= {name: scores[name] for name in ("nll", "brier", "accuracy")}
    return Candidate(nll(probs, labels), row | posterior.densities())


def path_table(stops: Sequence[Candidate]) -> pd.DataFrame:
    """One row for each temperature, with scores of calibrated predictions of the validation images.

    The columns are temperature and logit_scale; nll (in nats per image), brier and accuracy (a share of the images);
    expected_density and median_density (shares of the weights). ``se`` is the standard error of the difference between
    the NLL and its minimum, from the spread among the images. ``least_nll`` marks the minimum; ``sparsest`` marks the
    row with the lowest median_density within one standard error of it.
    """
    table = pd.DataFrame([stop.row for stop in stops])
    least = int(table["nll"].to_numpy().argmin())
    gaps = [stop.nll - stops[least].nll for stop in stops]
    table["se"] = [float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0 for gap in gaps]
    within = table[table["nll"] <= table["nll"].min() + table["se"]]
    marks = {"least_nll": least, "sparsest": within["median_density"].idxmin()}
    return table.assign(**{name: table.index == row for name, row in marks.items()})


@dataclass(frozen=True)
class FitPath:
    """What `fit_path` returns: the whole curve of accuracy and NLL against density from one fit.

    Attributes:
        last: the posterior at the end of the path, not averaged.
        table: one row for each temperature, see `path_table`.
        stops: the temperatures that the rows are made from.
        history, seconds, config: see `FitResult`.
    """

    last: Posterior
    table: pd.DataFrame
    stops: Sequence[Stop]
    history: pd.DataFrame
    seconds: float
    config: Mapping[str, Any]

    def at(self, row: int) -> Posterior:
        """The posterior at a row of the table, calibrated on the validation images; it owns its tensors.

        Raises:
            InputError: if there is no such row.
        """
        if not 0 <= row < len(self.stops):
            raise InputError(f"row={row}: the path has rows 0 to {len(self.stops) - 1}")
        return self.stops[row].posterior(self.last)

    def pick(self, mark: Mark = "least_nll") -> Posterior:
        """The posterior at a marked row of the table, see `path_table`.

        Raises:
            InputError: if there is no such mark.
        """
        if mark not in get_args(Mark):
            raise InputError(f"mark={mark!r}: choose one of {list(get_args(Mark))}; at(row) takes a row by its number")
        return self.at(int(self.table[mark].to_numpy().argmax()))


class Average:
    """Mean state of modules over the second half of a number of steps.

    Args:
        modules: the modules whose states are averaged.
        steps: number of steps.
        snapshots: number of states that are averaged.
    """

    def __init__(self, modules: Sequence[nn.Module], steps: int, snapshots: int) -> None:
        self.modules, self.every, self.snapshots = modules, max(1, steps // (2 * snapshots)), snapshots
        self.steps, self.step, self.count = steps, 0, 0
        self.states: list[dict[str, Tensor]] = []

    def __call__(self) -> None:
        """To be called once after each step."""
        self.step += 1
        left = self.steps - self.step
        if left % self.every or left >= self.every * self.snapshots:
            return
        self.count += 1
        states = [module.state_dict() for module in self.modules]
        if not self.states:
            self.states = copy.deepcopy(states)
        for mean, state in zip(self.states, states, strict=True):
            for name, value in state.items():
                if value.is_floating_point():
                    mean[name].lerp_(value, 1 / self.count)
                else:  # an integer, such as a counter of a guide
                    mean[name].copy_(value)
