"""What is selected against what is true, where the truth is known; see `pyro_isingvit.data.digits_decoys`.

References:
    Benjamini & Hochberg, "Controlling the False Discovery Rate", JRSS B 1995.
    Barbieri & Berger, "Optimal Predictive Model Selection", Annals of Statistics 2004 (median-probability model).
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ..errors import InputError
from .calibration import wilson_interval
from .inclusion import THRESHOLDS


def selection_table(probabilities: Tensor, relevant: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
    """Error rates of what is selected at each threshold, realised and expected.

    Args:
        probabilities: inclusion probabilities, or other scores within [0, 1], of any shape.
        relevant: whether each is relevant; booleans of the same shape.
        thresholds: what reaches a threshold is selected.

    Returns:
        One row for each threshold, with columns ``threshold``; ``selected``, their number; ``expected``, the mean of
        one minus the probability over these, which is their expected false discovery rate if the probabilities are
        right; ``false_discovery_rate``, the share of these that is not relevant; ``power``, the share of what is
        relevant that is selected. Both rates are 0 if nothing is selected.

    Raises:
        InputError: if the shapes differ, a value is not within [0, 1], or nothing is relevant.
    """
    probs, truth = _checked(probabilities, relevant)
    if not truth.any():
        raise InputError("relevant: nothing is, so that there is no power; give a test bed with something to find")
    rows = []
    for threshold in thresholds:
        chosen = probs >= threshold
        some = bool(chosen.any())
        rows.append(
            {
                "threshold": threshold,
                "selected": int(chosen.sum()),
                "expected": float((1 - probs[chosen]).mean()) if some else 0.0,
                "false_discovery_rate": float((~truth[chosen]).double().mean()) if some else 0.0,
                "power": float(chosen[truth].double().mean()),
            }
        )
    return pd.DataFrame(rows)


def inclusion_reliability(probabilities: Tensor, relevant: Tensor, bins: int = 10) -> pd.DataFrame:
    """How often what has a certain inclusion probability is relevant: a reliability curve.

    Args:
        probabilities, relevant: as for `selection_table`.
        bins: number of bins of equal width.

    Returns:
        One row for each bin that is not empty, with columns ``bin``, its upper edge; ``masks``, how many are in it;
        ``probability``, their mean inclusion probability; ``relevant``, the share that is relevant, with its 95 %
        Wilson interval ``lower`` to ``upper``; ``gap``, ``relevant`` less ``probability``.

    Raises:
        InputError: if the shapes differ, a value is not within [0, 1], or ``bins`` is below 1.
    """
    if bins < 1:
        raise InputError(f"bins={bins}: need at least one")
    probs, truth = _checked(probabilities, relevant)
    edge = ((probs * bins).long().clamp_max(bins - 1) + 1) / bins
    frame = pd.DataFrame({"bin": edge.numpy(), "probability": probs.numpy(), "relevant": truth.double().numpy()})
    table = frame.groupby("bin").agg(
        masks=("relevant", "size"), probability=("probability", "mean"), relevant=("relevant", "mean")
    )
    lower, upper = wilson_interval(table["relevant"], table["masks"])
    gap = table["relevant"] - table["probability"]
    return table.assign(lower=lower, upper=upper, gap=gap).reset_index()


def _checked(probabilities: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    probs, truth = torch.as_tensor(probabilities), torch.as_tensor(relevant)
    if probs.shape != truth.shape:
        raise InputError(f"relevant of shape {tuple(truth.shape)}: the probabilities have {tuple(probs.shape)}")
    if truth.dtype != torch.bool:
        raise InputError(f"relevant of type {truth.dtype}: give booleans, True for what is relevant")
    if not bool(((probs >= 0) & (probs <= 1)).all()):
        raise InputError("probabilities: must lie within [0, 1]; divide scores by the largest")
    return probs.detach().cpu().double().flatten(), truth.cpu().flatten()
