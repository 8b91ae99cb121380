"""Posterior and prior predictive checks, PSIS k-hat, and leave-one-out cross-validation.

References:
    Gelman, Meng & Stern, "Posterior Predictive Assessment of Model Fitness", Statistica Sinica 1996.
    Yao, Vehtari, Simpson & Gelman, "Yes, but Did It Work?: Evaluating Variational Inference", ICML 2018.
    Magnusson, Andersen, Jonasson & Vehtari, "Bayesian Leave-One-Out Cross-Validation for Large Data", ICML 2019.
    Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto Smoothed Importance Sampling", JMLR 2024.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import Images
from ..data.images import kind_of_labels
from ..draws import Draw, check_draws, prior_draws
from ..errors import InputError, kind_of
from ..inference.inputs import check_part
from ..models import IsingViT
from ..posterior import Posterior
from ..prediction import central_levels
from ..targets import TargetPrediction
from .arviz_adapter import psislw
from .label_statistics import INTERVAL, OF_LABELS_ALONE, STATISTICS, Statistic
from .labels import labels_given

LEVEL = 0.01
"""A check fails if its two-sided p-value is below this level. If the model holds, this share fails by chance."""


def _numbers(name: str, value: Any) -> Tensor:
    """The value of a statistic, a number or one for each class, as a vector."""
    try:
        return torch.atleast_1d(torch.as_tensor(value, dtype=torch.double))
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"statistics[{name!r}]={kind_of(value)}: has to return a number, or one for each class"
        ) from None


def _compared(observed: float, draws: Tensor) -> dict[str, float | bool]:
    """Columns of `predictive_check` for one number."""
    defined, missing = draws[draws.isfinite()], math.nan
    found: dict[str, float | bool] = {"observed": observed, "replicated": missing, "lower": missing, "upper": missing}
    if not math.isfinite(observed) or len(defined) < 1 / LEVEL:
        return found | {"p_value": missing, "fails": False}
    larger = float((defined > observed).sum()) + (float((defined == observed).sum()) + 1) / 2
    p = larger / (len(defined) + 1)
    lower, upper = defined.quantile(torch.tensor([0.05, 0.95], dtype=torch.double)).tolist()
    found |= {"replicated": float(defined.mean()), "lower": lower, "upper": upper}
    return found | {"p_value": p, "fails": min(p, 1 - p) < LEVEL / 2}


def predictive_check(
    labels: Tensor,
    replicated: Tensor,
    predicted: Tensor | TargetPrediction,
    statistics: Mapping[str, Statistic] | None = None,
) -> pd.DataFrame:
    """Compare statistics of observed labels with those of replicated labels.

    A statistic is a function of the labels and of what was predicted. If the labels come from the model, and the
    predictions do not depend on them (as on test images), then observed and replicated statistics have the same
    distribution, and p-values are uniform.

    Args:
        labels: observed labels: classes, (n,); floats, (n, k), which are numbers; or booleans, (n, k), which are
            several labels of an image.
        replicated: replicated labels, (draws, n) or (draws, n, k).
        predicted: mean predictive probabilities, (n, classes) or (n, k); of numbers, what `Posterior.predict_targets`
            returns.
        statistics: by name; if None, those of `label_statistics.STATISTICS` for this kind of labels.

    Returns:
        One row for each statistic and class: ``statistic``; ``class``, the number of the class (or of one of several
        numbers, or labels), missing where the statistic is a single number; ``observed``; ``replicated``, the mean over
        the draws; ``lower`` and ``upper``, the central 90 % interval of the replicated statistics; ``p_value``, the
        share of the replicated statistics that are larger than the observed one, with ties counted half; ``fails``,
        whether the p-value is within `LEVEL` / 2 of 0 or 1. Replicated values that are not finite, as of a class
        without images, are left out. If the observed one is not, or fewer than 1 / `LEVEL` are left, the p-value is
        missing, and nothing fails.

    Raises:
        InputError: if shapes do not fit, or there are fewer than 1 / `LEVEL` draws.
    """
    kind = _checked_kind(labels, replicated, predicted)
    statistics = STATISTICS[kind] if statistics is None else statistics
    least = math.ceil(1 / LEVEL)
    if len(replicated) < least:
        raise InputError(f"draws={len(replicated)}: p-values at level {LEVEL} take at least {least}")
    rows = []
    for name, statistic in statistics.items():
        observed = _numbers(name, statistic(labels, predicted))
        draws = torch.stack([_numbers(name, statistic(each, predicted)) for each in replicated])
        if draws.shape[1:] != observed.shape:
            raise InputError(
                f"statistics[{name!r}]: has {len(observed)} values of the labels, but not of replicated ones"
            )
        rows += [
            {"statistic": name, "class": k if len(observed) > 1 else None} | _compared(float(observed[k]), draws[:, k])
            for k in range(len(observed))
        ]
    return pd.DataFrame(rows).astype({"class": "Int64"})


def _checked_kind(labels: Tensor, replicated: Tensor, predicted: Tensor | TargetPrediction) -> str:
    """The kind of the labels; raises an `InputError` if shapes do not fit it."""
    kind = kind_of_labels(labels)
    if (kind == "numbers") is not isinstance(predicted, TargetPrediction):
        wanted = "a TargetPrediction" if kind == "numbers" else "a tensor of probabilities"
        raise InputError(f"predicted={kind_of(predicted)}: labels are {kind}, so give {wanted}")
    of_each = predicted.mean if isinstance(predicted, TargetPrediction) else predicted
    dims, needed = 2, "(n, k), (draws, n, k) and (n, k)"
    fits = of_each.shape == labels.shape
    if kind == "classes":
        dims, needed = 1, "(n,), (draws, n) and (n, classes)"
        fits = of_each.dim() == 2 and len(of_each) == len(labels)
    if not fits or labels.dim() != dims or replicated.shape[1:] != labels.shape:
        raise InputError(
            f"labels {tuple(labels.shape)}, replicated {tuple(replicated.shape)} and predicted "
            f"{tuple(of_each.shape)}: need {needed}"
        )
    return kind


def posterior_predictive_check(
    posterior: Posterior,
    data: Images,
    statistics: Mapping[str, Statistic] | None = None,
    draws: int = 400,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the labels of images with labels replicated from the posterior; see `predictive_check`.

    Use held-out images. Predictions of the images that the posterior was trained on know their labels, and p-values
    then are not uniform if the model holds.

    Args:
        posterior: posterior to check.
        data: labelled images.
        statistics: by name; those of the kind of the labels if None, see `predictive_check`.
        draws: number of draws, each of which replicates all labels once.
        seed: seed of the draws.

    Returns:
        The table of `predictive_check`.

    Raises:
        InputError: if there are fewer than 1 / `LEVEL` draws, or labels are of another kind or number than in the fit.
    """
    check_part(posterior.model, "data", data)
    return _check(posterior.draws(draws, seed), data, statistics, seed, posterior.logit_scale)


def prior_predictive_check(
    model: IsingViT,
    data: Images,
    statistics: Mapping[str, Statistic] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the labels of images with labels replicated from the prior, including its interaction.

    If a check fails, the observed statistic is implausible under the prior. Parameters without a prior, such as biases
    and norms, have the values that they have in the model. See `predictive_check`.

    Args:
        model: model whose prior is checked, fitted or not.
        data: labelled images.
        statistics: by name; if None, those of `label_statistics.OF_LABELS_ALONE` for this kind of labels.
        draws: number of draws, each of which replicates all labels once.
        seed: seed of the draws.

    Returns:
        The table of `predictive_check`.

    Raises:
        InputError: if there are fewer than 1 / `LEVEL` draws, or labels are of another kind or number than the model's.
        NotImplementedError: if the prior cannot draw from its interaction, see `Prior.draw_masks`.
    """
    if not isinstance(model, IsingViT):
        raise InputError(f"model={kind_of(model)}: give the model whose prior is checked, such as posterior.model")
    check_draws(draws)
    check_part(model, "data", data)
    statistics = OF_LABELS_ALONE[data.kind] if statistics is None else statistics
    return _check(prior_draws(model, draws, seed), data, statistics, seed)


def _check(
    draws: Iterable[Draw],
    data: Images,
    statistics: Mapping[str, Statistic] | None,
    seed: int,
    logit_scale: float = 1.0,
) -> pd.DataFrame:
    generator = torch.Generator().manual_seed(seed)
    total, means, every = torch.zeros(()), list[Tensor](), list[Tensor]()
    for draw in draws:
        each = labels_given(draw, data.images, logit_scale)
        total = total + each.mean
        every.append(each.sample(generator))
        if data.kind == "numbers":
            means.append(each.mean)
    replicated, labels = torch.stack(every), data.labels.cpu()
    predicted: Tensor | TargetPrediction = total / len(replicated)
    if means:
        lower, upper = replicated.quantile(central_levels(INTERVAL, replicated.device), 0)
        predicted = TargetPrediction(total / len(replicated), lower, upper, torch.stack(means).std(0, correction=0))
    return predictive_check(labels, replicated, predicted, statistics)


@dataclass(frozen=True, repr=False)
class LeaveOneOut:
    """Leave-one-out cross-validation by importance sampling from a guide.

    Printed, it says whether it can be relied on. Where it cannot, scores may be far too good.

    Attributes:
        elpd: expected log predictive density: the sum over the images of the log predictive density of the label, given
            all other images, in nats.
        se: standard error of ``elpd``, from the spread among the images.
        pointwise: the terms of ``elpd``, in nats, (n,).
        k: Pareto shape of the tail of the importance weights for each image, (n,). Above 0.7, the estimate for that
            image is not reliable.
        k_hat: Pareto shape of the tail of the importance weights of the guide for the whole posterior. Above 0.7, the
            guide is so far from the posterior that importance sampling cannot correct for the difference. Mean-field
            guides of thousands of weights always are; their predictions may be good nonetheless.
    """

    elpd: float
    se: float
    pointwise: np.ndarray
    k: np.ndarray
    k_hat: float

    @property
    def reliable(self) -> bool:
        """Whether ``k_hat`` and all of ``k`` are at most 0.7."""
        return bool(self.k_hat <= 0.7 and (self.k <= 0.7).all())

    def __repr__(self) -> str:
        if self.reliable:
            return f"LeaveOneOut: elpd {self.elpd:.1f}, standard error {self.se:.1f}, k-hat {self.k_hat:.2f}"
        above = f"k of {int((self.k > 0.7).sum())} of {len(self.k)} images" if self.k_hat <= 0.7 else "k-hat"
        return (
            f"LeaveOneOut: not reliable ({above} above 0.7; k-hat {self.k_hat:.2f}); compare scores of held-out images"
        )


def leave_one_out(posterior: Posterior, train: Images, draws: int = 1000, seed: int = 0) -> LeaveOneOut:
    r"""PSIS k-hat of a guide, and leave-one-out scores corrected for its difference from the posterior.

    At the temperature T of the posterior, draws :math:`\theta_s` from the guide q have the log importance weights
    :math:`\log p(\theta_s) - \log q(\theta_s) + \frac1T \sum_i \log p(y_i \mid \theta_s)` for the posterior. For the
    posterior without image j, :math:`\frac1T \log p(y_j \mid \theta_s)` is subtracted. The predictive density of the
    label of image j is then computed with the logit scale of the posterior.

    Masks that are held, or that have a temperature of their own, follow another target than this posterior, so that
    k-hat measures that difference too.

    `arviz.loo` applied to `to_inference_data` has no such weights: it takes the draws for exact draws of the posterior
    at T = 1.

    Args:
        posterior: posterior to check.
        train: the images that it was trained on (not augmented).
        draws: number of draws from the guide, at least 25.
        seed: seed of the draws.

    Raises:
        InputError: if there are fewer than 25 draws, too few to fit a tail, or labels are of another kind or number
            than in the fit.
    """
    if draws < 25:
        raise InputError(f"draws={draws}: a tail takes at least 25")
    check_part(posterior.model, "train", train)
    ratios, likelihoods = [], []
    for draw in posterior.draws(draws, seed):
        ratios.append(draw.log_ratio)
        plain = labels_given(draw, train.images)
        scaled = plain.at(posterior.logit_scale)
        likelihoods.append(torch.stack([plain.log_likelihood(train.labels), scaled.log_prob(train.labels)]))
    trained, each = torch.stack(likelihoods, -1).double().numpy()
    tempered = trained / posterior.model.temperature
    whole = np.asarray(ratios) + tempered.sum(0)
    _, k_hat = psislw(whole)
    log_weights, k = psislw(whole - tempered)
    pointwise = np.logaddexp.reduce(log_weights + each, axis=-1)
    se = math.sqrt(len(pointwise) * pointwise.var())
    return LeaveOneOut(float(pointwise.sum()), se, pointwise, k, float(k_hat))
