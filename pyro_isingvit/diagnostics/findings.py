"""Every number of a report on a fitted posterior."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from rich.progress import track

from ..data import Data, Images
from ..inference.result import FitResult
from ..network.stem import as_floats
from ..network.units import UNITS
from ..posterior import Posterior, Prediction
from .attention import Attention, attention_maps
from .calibration import metrics, paired_difference
from .checks import LeaveOneOut, leave_one_out, posterior_predictive_check, prior_predictive_check
from .inclusion import inclusion_table, threshold_table
from .shift import outside_scores, rotate, static, under_shift
from .units import alive_units, unit_inclusion

IMAGES = 1000
"""Test images behind shifted and outside predictions and training images behind leave-one-out, at most."""


SAMPLES = 8
"""Test images shown, half of them those of highest entropy."""


CHECK_DRAWS, PRIOR_DRAWS, LOO_DRAWS = 400, 100, 400
"""Draws behind the checks."""


ISING, MEDIAN, PLAIN = "ising", "median network", "deterministic"


@dataclass(frozen=True)
class Findings:
    """Every number of the page, as the functions of `pyro_isingvit.diagnostics` return them.

    Attributes:
        result, deterministic, data: what was examined.
        scores: of `metrics` on the test images, by method.
        difference: `paired_difference` of the posterior to the deterministic network; None without one.
        predictions: of the test images by method (the median network has none).
        inclusion: `inclusion_table`.
        thresholds: `threshold_table`.
        units: of each kind of unit, how many there are, how many are expected to be alive, and how many the
            median-probability model leaves alive.
        outside: `outside_scores` of test images turned by 90 degrees and of static, by method.
        shift: `under_shift`, by method.
        attention: of the shown images.
        shown: indices of the test images shown.
        checks: `posterior_predictive_check` on the test images.
        prior_checks: `prior_predictive_check`; None if the prior cannot draw.
        loo: `leave_one_out` on training images.
    """

    result: FitResult
    deterministic: FitResult | None
    data: Data
    scores: Mapping[str, Mapping[str, float]]
    difference: pd.DataFrame | None
    predictions: Mapping[str, Prediction]
    inclusion: pd.DataFrame
    thresholds: pd.DataFrame
    units: pd.DataFrame
    outside: pd.DataFrame
    shift: Mapping[str, pd.DataFrame]
    attention: Attention
    shown: torch.Tensor
    checks: pd.DataFrame
    prior_checks: pd.DataFrame | None
    loo: LeaveOneOut


def examine(
    result: FitResult,
    data: Data,
    deterministic: FitResult | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    draws: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> Findings:
    """Compute all that `write_report` shows.

    Args:
        result: a fit of a `ViT` with masks.
        data: its images.
        deterministic: the fit to compare with, if any.
        scores: of `metrics` on the test images by method, where they are there already.
        draws, seed: of the predictions.
        progress: whether to show a progress bar.
    """
    posterior = result.posterior
    methods = {ISING: (posterior, draws)} | ({} if deterministic is None else {PLAIN: (deterministic.posterior, 1)})
    test, few = data.test, data.test[torch.arange(min(IMAGES, len(data.test)))]
    train, labels = data.train[torch.arange(min(IMAGES, len(data.train)))], test.labels.cpu()
    predictions = {m: fit.predict(test.images, n, seed=seed) for m, (fit, n) in methods.items()}
    shown = _shown(predictions[ISING])
    if scores is None:
        scores = {m: metrics(p.probs, labels) for m, p in predictions.items()}
        scores[MEDIAN] = metrics(posterior.predict_plug_in(test.images), labels)
    difference = None
    if deterministic is not None:
        difference = paired_difference(predictions[ISING].probs, predictions[PLAIN].probs, labels)
    costly: dict[str, Callable[[], Any]] = {
        "shift": lambda: {m: under_shift(fit, few, draws=n, seed=seed) for m, (fit, n) in methods.items()},
        "outside": lambda: _outside(methods, few, seed),
        "attention": lambda: attention_maps(posterior, test.images[shown], draws, seed),
        "checks": lambda: posterior_predictive_check(posterior, test, draws=CHECK_DRAWS, seed=seed),
        "prior_checks": lambda: _prior_checks(posterior, test, seed),
        "loo": lambda: leave_one_out(posterior, train, LOO_DRAWS, seed),
    }
    found = {name: compute() for name, compute in track(costly.items(), "examine", disable=not progress)}
    return Findings(
        result=result,
        deterministic=deterministic,
        data=data,
        scores=scores,
        difference=difference,
        predictions=predictions,
        inclusion=inclusion_table(posterior),
        thresholds=threshold_table(posterior),
        units=_units(posterior),
        shown=shown,
        **found,
    )


def _units(posterior: Posterior) -> pd.DataFrame:
    names = {site.name for site in posterior.model.sites}
    rows = []
    for unit, known in UNITS.items():
        if set(known.owns) <= names:
            probs = unit_inclusion(posterior, unit)
            median = alive_units(posterior, unit)
            rows.append(
                {
                    "unit": unit,
                    "total": probs.size,
                    "expected": float(probs.sum()),
                    "median": int(median.sum()),
                }
            )
    return pd.DataFrame(rows)


def _shown(prediction: Prediction) -> torch.Tensor:
    """Indices of the images to show: the first ones, then those of highest entropy."""
    first = min(SAMPLES // 2, len(prediction.probs))
    unsure = [i for i in prediction.entropy.argsort(descending=True).tolist() if i >= first]
    return torch.tensor([*range(first), *unsure[: SAMPLES - first]])


def _prior_checks(posterior: Posterior, test: Images, seed: int) -> pd.DataFrame | None:
    try:
        return prior_predictive_check(posterior.model, test, draws=PRIOR_DRAWS, seed=seed)
    except NotImplementedError:
        return None


def _outside(methods: Mapping[str, tuple[Posterior, int]], few: Images, seed: int) -> pd.DataFrame:
    elsewhere = {
        "turned by 90°": rotate(as_floats(few.images), 90).clamp(0, 1),
        "of static": static(as_floats(few.images), seed),
    }
    tables = []
    for method, (fit, draws) in methods.items():
        inside = fit.predict(few.images, draws, seed=seed)
        for kind, images in elsewhere.items():
            scores = outside_scores(inside, fit.predict(images, draws, seed=seed))
            tables.append(scores.assign(method=method, outside=kind))
    table = pd.concat(tables)[["outside", "score", "method", "auroc", "aupr"]]
    return table.sort_values(["outside", "score"], kind="stable", ignore_index=True)
