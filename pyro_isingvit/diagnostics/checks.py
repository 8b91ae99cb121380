"""Posterior and prior predictive checks, PSIS k-hat, and leave-one-out cross-validation.

References:
    Gelman, Meng & Stern, "Posterior Predictive Assessment of Model Fitness", Statistica Sinica 1996.
    Yao, Vehtari, Simpson & Gelman, "Yes, but Did It Work?: Evaluating Variational Inference", ICML 2018.
    Magnusson, Andersen, Jonasson & Vehtari, "Bayesian Leave-One-Out Cross-Validation for Large Data", ICML 2019.
    Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto Smoothed Importance Sampling", JMLR 2024.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import Images
from ..draws import Draw, check_draws, draw_labels, prior_draws
from ..errors import InputError, kind_of
from ..logit_scale import scale_logits
from ..models import IsingViT
from ..posterior import Posterior
from .arviz_adapter import psislw

Statistic = Callable[[Tensor, Tensor], Tensor]
"""A function of labels (n,) and predictive probabilities (n, classes) that returns a number, or one for each class."""

LEVEL = 0.01
"""A check fails if its two-sided p-value is below this level. If the model holds, this share fails by chance."""


def class_frequencies(labels: Tensor, probs: Tensor) -> Tensor:
    """Share of the labels in each class."""
    return torch.bincount(labels, minlength=probs.shape[-1]) / len(labels)


def confidence(labels: Tensor, probs: Tensor) -> Tensor:
    """Share of the labels that are the most probable class; replicated labels average to the mean confidence."""
    return (probs.argmax(-1) == labels).float().mean()


def entropy(labels: Tensor, probs: Tensor) -> Tensor:
    """Mean negative log-probability of the labels, in nats; replicated labels average to the mean entropy."""
    return -probs.clamp_min(1e-12).log().gather(-1, labels.unsqueeze(-1)).mean()


def class_error(labels: Tensor, probs: Tensor) -> Tensor:
    """For each class, the share of its images whose most probable class is another; 0 for a class without images."""
    there = torch.bincount(labels, minlength=probs.shape[-1])
    wrong = torch.bincount(labels[probs.argmax(-1) != labels], minlength=probs.shape[-1])
    return wrong / there.clamp_min(1)


STATISTICS: Mapping[str, Statistic] = {
    "class frequency": class_frequencies,
    "confidence": confidence,
    "entropy": entropy,
    "class error": class_error,
}


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
    labels: Tensor, replicated: Tensor, probs: Tensor, statistics: Mapping[str, Statistic] = STATISTICS
) -> pd.DataFrame:
    """Compare statistics of observed labels with those of replicated labels.

    A statistic is a function of the labels and of the mean predictive probabilities. If the labels come from the model,
    and the probabilities do not depend on them (as on test images), then observed and replicated statistics have the
    same distribution, and p-values are uniform.

    Args:
        labels: observed labels, (n,).
        replicated: replicated labels, (draws, n).
        probs: mean predictive probabilities, (n, classes).
        statistics: by name.

    Returns:
        One row for each statistic and class: ``statistic``; ``class``, missing where the statistic is a single number;
        ``observed``; ``replicated``, the mean over the draws; ``lower`` and ``upper``, the central 90 % interval of the
        replicated statistics; ``p_value``, the share of the replicated statistics that are larger than the observed
        one, with ties counted half; ``fails``, whether the p-value is within `LEVEL` / 2 of 0 or 1. Replicated values
        that are not finite, as of a class without images, are left out. If the observed one is not, or fewer than
        1 / `LEVEL` are left, the p-value is missing, and nothing fails.

    Raises:
        InputError: if shapes do not fit, or there are fewer than 1 / `LEVEL` draws.
    """
    if replicated.dim() != 2 or replicated.shape[1:] != labels.shape or len(probs) != len(labels):
        raise InputError(
            f"labels {tuple(labels.shape)}, replicated {tuple(replicated.shape)} and probs {tuple(probs.shape)}: "
            "need (n,), (draws, n) and (n, classes)"
        )
    least = math.ceil(1 / LEVEL)
    if len(replicated) < least:
        raise InputError(f"draws={len(replicated)}: p-values at level {LEVEL} take at least {least}")
    rows = []
    for name, statistic in statistics.items():
        observed = _numbers(name, statistic(labels, probs))
        draws = torch.stack([_numbers(name, statistic(each, probs)) for each in replicated])
        if draws.shape[1:] != observed.shape:
            raise InputError(
                f"statistics[{name!r}]: has {len(observed)} values of the labels, but not of replicated ones"
            )
        rows += [
            {"statistic": name, "class": k if len(observed) > 1 else None} | _compared(float(observed[k]), draws[:, k])
            for k in range(len(observed))
        ]
    return pd.DataFrame(rows).astype({"class": "Int64"})


def posterior_predictive_check(
    posterior: Posterior,
    data: Images,
    statistics: Mapping[str, Statistic] = STATISTICS,
    draws: int = 400,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the labels of images with labels replicated from the posterior; see `predictive_check`.

    Use held-out images. On the images that the posterior was trained on, p-values concentrate around one half.

    Args:
        posterior: posterior to check.
        data: labelled images.
        statistics: by name.
        draws: number of draws, each of which replicates all labels once.
        seed: seed of the draws.

    Returns:
        The table of `predictive_check`.

    Raises:
        InputError: if there are fewer than 1 / `LEVEL` draws.
    """
    return _check(posterior.draws(draws, seed), data, statistics, seed, posterior.logit_scale)


def prior_predictive_check(
    model: IsingViT,
    data: Images,
    statistics: Mapping[str, Statistic] = STATISTICS,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the labels of images with labels replicated from the prior, including its interaction.

    If a check fails, the observed statistic is implausible under the prior. Parameters without a prior, such as biases
    and norms, have the values that they have in the model. See `predictive_check`.

    Args:
        model: model whose prior is checked, fitted or not.
        data: labelled images.
        statistics: by name.
        draws: number of draws, each of which replicates all labels once.
        seed: seed of the draws.

    Returns:
        The table of `predictive_check`.

    Raises:
        InputError: if there are fewer than 1 / `LEVEL` draws.
        NotImplementedError: if the prior cannot draw from its interaction, see `Prior.draw_masks`.
    """
    check_draws(draws)
    return _check(prior_draws(model, draws, seed), data, statistics, seed)


def _check(
    draws: Iterable[Draw],
    data: Images,
    statistics: Mapping[str, Statistic],
    seed: int,
    logit_scale: float = 1.0,
) -> pd.DataFrame:
    generator = torch.Generator().manual_seed(seed)
    total, replicated = torch.zeros(len(data), data.classes), []
    for draw in draws:
        each = scale_logits(draw.log_probs(data.images), logit_scale)
        total += each.exp()
        replicated.append(draw_labels(each, generator))
    return predictive_check(data.labels.cpu(), torch.stack(replicated), total / len(replicated), statistics)


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out cross-validation by importance sampling from a guide.

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
        InputError: if there are fewer than 25 draws, too few to fit a tail.
    """
    if draws < 25:
        raise InputError(f"draws={draws}: a tail takes at least 25")
    ratios, likelihoods = [], []
    labels = train.labels.cpu().unsqueeze(-1)
    for draw in posterior.draws(draws, seed):
        ratios.append(draw.log_ratio)
        plain = draw.log_probs(train.images)
        both = torch.stack([plain, scale_logits(plain, posterior.logit_scale)])
        likelihoods.append(both.gather(-1, labels.expand(2, -1, -1)).squeeze(-1))
    trained, each = torch.stack(likelihoods, -1).double().numpy()
    tempered = trained / posterior.model.temperature
    whole = np.asarray(ratios) + tempered.sum(0)
    _, k_hat = psislw(whole)
    log_weights, k = psislw(whole - tempered)
    pointwise = np.logaddexp.reduce(log_weights + each, axis=-1)
    se = math.sqrt(len(pointwise) * pointwise.var())
    return LeaveOneOut(float(pointwise.sum()), se, pointwise, k, float(k_hat))
