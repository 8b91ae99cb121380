"""The temperature, decided on held-out images along one warm-started path from cold to hot."""

import copy
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from .data import Images
from .models import IsingViT
from .predict import predict
from .result import densities

if TYPE_CHECKING:
    from .fit import Trainer

FACTORS = (0.005, 0.016, 0.05, 0.16, 0.5, 1.6, 5.0)
"""Temperatures tried, in multiples of training images per weight."""

SHARE = 0.5
"""Share of the Ising phase that is spent on trying them."""

PATIENCE = 1.5
"""The path ends early once the validation NLL is this many times its minimum."""

DRAWS = 20
"""Posterior draws behind each validation NLL."""


def coldest(model: IsingViT, num_data: int) -> float:
    """The first temperature of the path, which the pilot phase has too: next to no weight is worth dropping."""
    return FACTORS[0] * num_data / sum(site.numel for site in model.sites)


def follow_path(trainer: "Trainer", validation: Images, ising: int) -> pd.DataFrame:
    """Train through rising temperatures and go back to the one that the validation images favour.

    Hotter means fewer weights. Each temperature starts where the one before ended, so one fit gives the
    whole curve of NLL against density, as a lasso path does. Chosen is the temperature of least
    validation NLL; model, guide and optimiser are left as they were there.

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
        trainer.run(steps, "path")
        probs = predict(model, guide, validation.images, draws=DRAWS).probs
        nll = float(torch.nn.functional.nll_loss(probs.clamp_min(1e-12).log(), labels))
        accuracy = float((probs.argmax(-1) == labels).float().mean())
        rows.append({"temperature": model.temperature, "nll": nll, "accuracy": accuracy, **densities(guide)})
        least = min(row["nll"] for row in rows)
        if nll == least:
            best, temperature = [copy.deepcopy(part.state_dict()) for part in parts], model.temperature
        elif nll > PATIENCE * least:
            break
    for part, state in zip(parts, best, strict=True):
        part.load_state_dict(state)
    model.temperature = temperature
    path = pd.DataFrame(rows)
    return path.assign(chosen=path["temperature"] == temperature)
