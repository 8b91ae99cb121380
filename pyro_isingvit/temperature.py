"""The temperature, decided on held-out images along one warm-started path from cold to hot."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from .data import Images
from .models import IsingViT
from .predict import predict
from .result import densities

if TYPE_CHECKING:
    from .fit import Trainer

FACTORS = (0.005, 0.016, 0.05, 0.16, 0.5, 1.6, 5.0)
"""Temperatures tried, in multiples of training images per weight."""

SHARE = 0.3
"""Share of the Ising phase that is spent on trying them."""

SNAPSHOTS = 8
"""States that are averaged at each."""

PATIENCE = 1.2
"""The path ends early once the validation NLL is this many times its minimum."""

DRAWS = 20
"""Posterior draws behind each validation NLL."""


def coldest(model: IsingViT, num_data: int) -> float:
    """The first temperature of the path, which the pilot phase has too: next to no weight is worth dropping."""
    return FACTORS[0] * num_data / sum(site.numel for site in model.sites)


def follow_path(trainer: "Trainer", validation: Images, ising: int) -> pd.DataFrame:
    """Train through rising temperatures and go back to the one that the validation images favour.

    Hotter means fewer weights. Each temperature starts where the one before ended, so one fit gives the
    whole curve of NLL against density, as a lasso path does. Each is judged by the average of the parameters
    over its second half: at this rate of learning any single state is off by more than temperatures differ.
    Chosen is the temperature of least validation NLL; model, guide, optimiser and learning rate go back to where
    they were there, the first two on average.

    Args:
        trainer: at the start of its Ising phase.
        validation: images to decide on.
        ising: steps of that phase.

    Returns:
        One row a temperature: temperature, nll, accuracy, expected_density, median_density, chosen.
    """
    model, guide = trainer.model, trainer.guide
    steps = max(1, round(SHARE * ising / len(FACTORS)))
    labels = validation.labels.cpu()
    rows: list[dict[str, Any]] = []
    parts: tuple[Any, ...] = model, guide, trainer.optimizer
    best: list[dict[str, Any]] = []
    for factor in FACTORS[: max(1, ising // steps)]:
        model.temperature = factor / FACTORS[0] * coldest(model, len(trainer.train))
        average = _Average((model, guide), steps)
        trainer.run(steps, "path", average)
        states = [copy.deepcopy(part.state_dict()) for part in parts]
        for part, state in zip(parts, average.states, strict=False):
            part.load_state_dict(state)
        probs = predict(model, guide, validation.images, draws=DRAWS).probs
        nll = float(torch.nn.functional.nll_loss(probs.clamp_min(1e-12).log(), labels))
        accuracy = float((probs.argmax(-1) == labels).float().mean())
        rows.append({"temperature": model.temperature, "nll": nll, "accuracy": accuracy, **densities(guide)})
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        least = min(row["nll"] for row in rows)
        if nll == least:
            best, temperature, position = [*average.states, states[2]], model.temperature, trainer.position
        elif nll > PATIENCE * least:
            break
    for part, state in zip(parts, best, strict=True):
        part.load_state_dict(state)
    model.temperature = temperature
    trainer.go_back(position)
    path = pd.DataFrame(rows)
    return path.assign(chosen=path["temperature"] == temperature)


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
                mean[name].lerp_(value, 1 / self.count)
