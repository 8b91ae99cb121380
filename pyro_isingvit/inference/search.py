"""The temperature, decided on held-out images: a warm-started path from cold to hot, then whole trainings."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from torch import Tensor, nn

from ..data import Images
from ..errors import InputError, TrainingError
from ..guides import Guide
from ..models import IsingViT
from ..posterior import Posterior
from ..scores import mean_scores, nll
from .trainer import Snapshot, Trainer

FACTORS = (0.005, 0.016, 0.05, 0.16, 0.5, 1.6, 5.0, 16.0)
"""Temperatures tried, in multiples of training images per weight."""

PILOT, PILOT_IMAGES = 0.5, 300
"""Temperature of the pilot phase before them, likewise, but of no more than so many images. In a warm pilot phase
weights are shrunk to what the data ask for and do not overfit before their masks are learned; from a hot one they do
not recover."""

SHARE = 0.2
"""Steps that ``temperature="auto"`` spends on trying them, as a share of the Ising phase."""

POSITION = 0.8
"""Where on its schedule the learning rate is held meanwhile, for guides whose masks follow in closed form: low enough
that temperatures differ by more than steps. For others it is held where it is."""

SNAPSHOTS = 8
"""States that are averaged at each."""

PATIENCE = 1.2
"""``temperature="auto"`` stops trying once the validation NLL is this many times its minimum."""

DRAWS = 20
"""Posterior draws behind each validation NLL."""

Mark = Literal["least_nll", "sparsest"]
"""A mark of `path_table`."""


def grid(model: IsingViT, num_data: int) -> list[float]:
    """The temperatures of a path."""
    return [factor * num_data / _weights(model) for factor in FACTORS]


def pilot_temperature(guide: Guide, num_data: int) -> float:
    """Of the pilot phase before a path: see `PILOT`. Without masks, weights would be pruned in it: the path's first."""
    warm = PILOT * min(num_data, PILOT_IMAGES) / _weights(guide.model)
    return warm if guide.mask_shapes else grid(guide.model, num_data)[0]


def _weights(model: IsingViT) -> int:
    return sum(site.numel for site in model.sites)


@dataclass(frozen=True)
class Judged:
    """What the validation images say.

    Attributes:
        nll: of each image, (n,), in nats.
        row: what tables say: temperature, logit_scale, nll, brier, accuracy, densities.
    """

    nll: Tensor
    row: dict[str, float]

    @property
    def temperature(self) -> float:
        """Of the posterior."""
        return self.row["temperature"]


@dataclass(frozen=True)
class Stop(Judged):
    """A temperature of a path.

    Attributes:
        states: of model and guide, averaged over the second half of the steps at this temperature.
    """

    states: tuple[dict[str, Tensor], dict[str, Tensor]]

    def posterior(self, template: Posterior) -> Posterior:
        """The posterior here, calibrated; the template's guide in another state."""
        guide = copy.deepcopy(template.guide)
        of_model, of_guide = self.states
        guide.model.load_state_dict(of_model)
        guide.load_state_dict(of_guide)
        guide.model.temperature = self.temperature
        return Posterior((guide,), self.row["logit_scale"])


def follow_path(trainer: Trainer, validation: Images, steps: int, patience: float = float("inf")) -> list[Stop]:
    """Train through rising temperatures, judging each by the validation images.

    Hotter means fewer weights. Each temperature starts where the one before ended, so one fit gives the
    whole curve of NLL against density, as a lasso path does. The learning rate is held, and each is judged by the
    average of the parameters over its second half: a single state may be off by more than temperatures differ.

    Args:
        trainer: at the end of the pilot phase; it is left at the end of the path.
        validation: images to decide on.
        steps: at each temperature.
        patience: the path ends once the validation NLL is this many times its minimum, or training breaks down.

    Raises:
        TrainingError: if it breaks down at the first.
    """
    model, guide = trainer.model, trainer.guide
    parts: tuple[Any, Any] = model, guide
    trainer.stride = 0.0
    if guide.closed_form:
        trainer.position = max(trainer.position, POSITION * trainer.config.steps)
    stops: list[Stop] = []
    for temperature in grid(model, len(trainer.train)):
        model.temperature = temperature
        average = _Average(parts, steps)
        try:
            trainer.run(steps, "path", average)
            states = [copy.deepcopy(part.state_dict()) for part in parts]
            for part, state in zip(parts, average.states, strict=True):
                part.load_state_dict(state)
            judged = _judge(guide, validation)
        except TrainingError:
            if not stops:
                raise
            break
        of_model, of_guide = average.states
        stops.append(Stop(judged.nll, judged.row, (of_model, of_guide)))
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        if judged.row["nll"] > patience * min(stop.row["nll"] for stop in stops):
            break
    return stops


def path_table(stops: Sequence[Judged]) -> pd.DataFrame:
    """One row a temperature, calibrated on the validation images: temperature, logit_scale; nll, brier and accuracy of
    these images; both densities.

    ``se`` is the standard error of the difference of the NLL to its minimum, from its spread among the images.
    ``least_nll`` marks that minimum; ``sparsest`` the sparsest within one standard error of it.
    """
    table = pd.DataFrame([stop.row for stop in stops])
    least = int(table["nll"].to_numpy().argmin())
    gaps = [stop.nll - stops[least].nll for stop in stops]
    table["se"] = [float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0 for gap in gaps]
    within = table[table["nll"] <= table["nll"].min() + table["se"]]
    marks = {"least_nll": least, "sparsest": within["median_density"].idxmin()}
    return table.assign(**{name: table.index == row for name, row in marks.items()})


def finish(
    trainer: Trainer, validation: Images, start: Snapshot, first: int, steps: int, sparsest: bool = False
) -> pd.DataFrame:
    """Train from the end of the pilot phase at one temperature after the other, as long as it pays.

    A path judges temperatures early and after few steps at each: before the cold ones overfit, and before the hot ones
    have lost all their weights or made up for those they lost. So it only says where to begin, and whole trainings are
    compared: hotter ones as long as the NLL at the end falls (or, for the sparsest, stays within a standard error of
    the least), then, if no hotter one was better, colder ones as long as it falls.

    Args:
        trainer: at the end of a path; it is left at the end of the training with the least NLL (or the hottest
            within one standard error of it).
        validation: images to decide on.
        start: the end of the pilot phase.
        first: where in the `grid` to begin.
        steps: of each training.
        sparsest: which rule to go by.

    Returns:
        The `path_table` of the ends of the trainings, cold to hot; ``chosen`` marks the one it stayed at.

    Raises:
        TrainingError: if the first of them breaks down; another one that does has not paid.
    """
    model, guide = trainer.model, trainer.guide
    temperatures = grid(model, len(trainer.train))
    ends: dict[int, tuple[Judged, Snapshot]] = {}

    def table() -> pd.DataFrame:
        return path_table([ends[i][0] for i in sorted(ends)]).set_index(pd.Index(sorted(ends)))

    def within(i: int) -> bool:
        every = table()
        return bool(every["nll"][i] <= every["nll"].min() + (every["se"][i] if sparsest and i >= first else 0))

    def pays(i: int) -> bool:
        trainer.go_back(start)
        model.temperature = temperatures[i]
        try:
            trainer.run(steps, "ising")
            judged = _judge(guide, validation)
        except TrainingError:
            if i == first:
                raise
            return False
        ends[i] = judged, trainer.snapshot()
        return within(i)

    for i in range(first, len(temperatures)):
        if not pays(i):
            break
    if table()["least_nll"][first]:
        for i in reversed(range(first)):
            if not pays(i):
                break
    chosen = max(i for i in ends if within(i))
    trainer.go_back(ends[chosen][1])
    model.temperature = temperatures[chosen]
    return table().assign(chosen=lambda every: every.index == chosen).reset_index(drop=True)


def _judge(guide: Guide, validation: Images) -> Judged:
    """The posterior as it is now, calibrated: else a temperature would be chosen for how sure it is of what it says.

    Raises:
        TrainingError: if it predicts no finite NLL.
    """
    labels = validation.labels.cpu()
    posterior = Posterior((guide,)).calibrate(validation, DRAWS)
    probs = posterior.predict(validation.images, DRAWS).probs
    scores = mean_scores(probs, labels)
    row = {"temperature": guide.model.temperature, "logit_scale": posterior.logit_scale}
    row |= {name: scores[name] for name in ("nll", "brier", "accuracy")}
    return Judged(nll(probs, labels), row | posterior.densities())


@dataclass(frozen=True)
class FitPath:
    """What `fit_path` returns: the whole curve of accuracy and NLL against density from one fit.

    Attributes:
        last: the posterior at the end of the path, not averaged.
        table: one row a temperature, see `path_table`.
        stops: what the rows are made of.
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
        """The posterior at a marked row of the table, see `path_table`."""
        return self.at(int(self.table[mark].to_numpy().argmax()))


class _Average:
    """Mean state of modules over the second half of some steps."""

    def __init__(self, modules: Sequence[nn.Module], steps: int) -> None:
        self.modules, self.every = modules, max(1, steps // (2 * SNAPSHOTS))
        self.steps, self.step, self.count = steps, 0, 0
        self.states: list[dict[str, Tensor]] = []

    def __call__(self) -> None:
        """Once after each step."""
        self.step += 1
        left = self.steps - self.step
        if left % self.every or left >= self.every * SNAPSHOTS:
            return
        self.count += 1
        states = [module.state_dict() for module in self.modules]
        if not self.states:
            self.states = copy.deepcopy(states)
        for mean, state in zip(self.states, states, strict=True):
            for name, value in state.items():
                if value.is_floating_point():
                    mean[name].lerp_(value, 1 / self.count)
                else:  # a count of some guide's
                    mean[name].copy_(value)
