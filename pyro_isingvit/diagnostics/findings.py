"""The numbers in the report on a fitted posterior."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from rich.progress import track

from ..data import Data, Images
from ..data.streams import in_memory
from ..inference.result import FitResult
from ..models.likelihoods import require_classes
from ..network import ViT
from ..network.stem import as_floats
from ..network.units import UNITS, is_complete
from ..posterior import Posterior
from ..prediction import Prediction
from ..scores import ISING, MEDIAN, PLAIN
from .attention import Attention, attention_maps
from .calibration import metrics, paired_difference
from .checks import LeaveOneOut, leave_one_out, posterior_predictive_check, prior_predictive_check
from .inclusion import inclusion_table, stability, threshold_table
from .meaning import inclusion_meaning
from .shift import outside_scores, rotate, static, under_shift
from .units import alive_units, unit_inclusion

IMAGES = 1000
"""Largest number of test images for shifted and out-of-distribution predictions, and of training images for
leave-one-out."""


SAMPLES = 8
"""Number of test images shown. Half of them are those of highest entropy."""


CHECK_DRAWS, PRIOR_DRAWS, LOO_DRAWS = 400, 100, 400
"""Numbers of draws for the posterior predictive checks, the prior predictive checks and leave-one-out."""


@dataclass(frozen=True)
class Findings:
    """Every number in the report, as the functions of `pyro_isingvit.diagnostics` return it.

    Attributes:
        result, deterministic, data: the fit, the fit of the deterministic network (or None), and their data.
        selection: the fit that selected input features, or None.
        scores: `metrics` on the test images, by method.
        difference: `paired_difference` between the posterior and the deterministic network; None without one.
        predictions: predictions of the test images, by method. The median-probability model has none.
        inclusion: `inclusion_table`.
        thresholds: `threshold_table`.
        meaning: `inclusion_meaning`.
        units: for each kind of unit, the total number, the expected number that is alive, and the number that is alive
            in the median-probability model.
        agreement: `stability` of the members of a mixture; None without one.
        outside: `outside_scores` of test images turned by 90 degrees and of random pixels, by method.
        shift: `under_shift`, by method.
        attention: `attention_maps` of the images shown; None if the network is no `ViT`.
        shown: indices of the test images shown.
        checks: `posterior_predictive_check` on the test images.
        prior_checks: `prior_predictive_check` on the test images; None if the prior cannot draw from its interaction.
        loo: `leave_one_out` on training images.
    """

    result: FitResult
    deterministic: FitResult | None
    data: Data
    selection: FitResult | None
    scores: Mapping[str, Mapping[str, float]]
    difference: pd.DataFrame | None
    predictions: Mapping[str, Prediction]
    inclusion: pd.DataFrame
    thresholds: pd.DataFrame
    meaning: pd.DataFrame
    units: pd.DataFrame
    agreement: pd.DataFrame | None
    outside: pd.DataFrame
    shift: Mapping[str, pd.DataFrame]
    attention: Attention | None
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
    selection: FitResult | None = None,
) -> Findings:
    """Compute everything that `write_report` shows.

    Args:
        result: fit of a `ViT` with masks.
        data: the data of the fit.
        deterministic: fit of the deterministic network to compare with, if any.
        scores: `metrics` on the test images by method, if they have been computed before.
        draws, seed: number of draws for predictions, and the seed of all draws.
        progress: whether to show a progress bar.
        selection: fit of a `FeatureSpikeSlab` that selected input features, if any.

    Raises:
        InputError: if the posterior has no masks, ``draws`` is below 1, or labels are not classes.
    """
    posterior = result.posterior
    require_classes(posterior.model.likelihood, "examine", "; use posterior_predictive_check and to_inference_data")
    methods = {ISING: (posterior, draws)} | ({} if deterministic is None else {PLAIN: (deterministic.posterior, 1)})
    test, few = data.test, data.test[torch.arange(min(IMAGES, len(data.test)))]
    train, labels = in_memory(data.train, IMAGES), test.labels.cpu()
    train = train[torch.arange(min(IMAGES, len(train)))]
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
        "attention": lambda: _attention(posterior, test.images[shown], draws, seed),
        "checks": lambda: posterior_predictive_check(posterior, test, draws=CHECK_DRAWS, seed=seed),
        "prior_checks": lambda: _prior_checks(posterior, test, seed),
        "loo": lambda: leave_one_out(posterior, train, LOO_DRAWS, seed),
    }
    found = {name: compute() for name, compute in track(costly.items(), "examine", disable=not progress)}
    return Findings(
        result=result,
        deterministic=deterministic,
        data=data,
        selection=selection,
        scores=scores,
        difference=difference,
        predictions=predictions,
        inclusion=inclusion_table(posterior),
        thresholds=threshold_table(posterior),
        meaning=inclusion_meaning(posterior),
        units=_units(posterior),
        agreement=stability(posterior.members) if len(posterior.guides) > 1 else None,
        shown=shown,
        **found,
    )


def _attention(posterior: Posterior, images: torch.Tensor, draws: int, seed: int) -> Attention | None:
    return attention_maps(posterior, images, draws, seed) if isinstance(posterior.model.network, ViT) else None


def _units(posterior: Posterior) -> pd.DataFrame:
    names = {site.name for site in posterior.model.sites}
    rows = []
    for unit, known in UNITS.items():
        if is_complete(known, names):
            probs = unit_inclusion(posterior, unit)
            alive = [int(alive_units(member, unit).sum()) for member in posterior.members]
            rows.append(
                {
                    "unit": unit,
                    "total": probs.size,
                    "expected": float(probs.sum()),
                    "median": sum(alive) / len(alive),
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
    table = pd.concat(tables)[["outside", "score", "method", "auroc", "aupr", "fpr95"]]
    return table.sort_values(["outside", "score"], kind="stable", ignore_index=True)
