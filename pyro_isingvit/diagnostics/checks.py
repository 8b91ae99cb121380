"""Does the model fit, and does the guide fit the model: predictive checks, PSIS and leave-one-out.

References:
    Gelman, Meng & Stern, "Posterior Predictive Assessment of Model Fitness", Statistica Sinica 1996.
    Yao, Vehtari, Simpson & Gelman, "Yes, but Did It Work?: Evaluating Variational Inference", ICML 2018.
    Magnusson, Andersen, Jonasson & Vehtari, "Bayesian Leave-One-Out Cross-Validation for Large Data", ICML 2019.
    Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto Smoothed Importance Sampling", JMLR 2024.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import Images
from ..draws import Draw, check_draws, draw_labels, prior_draws
from ..errors import InputError
from ..logit_scale import scale_logits
from ..models import IsingViT
from ..posterior import Posterior
from .arviz_adapter import psislw

Statistic = Callable[[Tensor, Tensor], Tensor]
"""Labels (n,) and predictive probabilities (n, classes) to a number, or one for each class."""

LEVEL = 0.01
"""A check fails if its two-sided p-value is below; of many that hold, this share fails by chance."""


def class_frequencies(labels: Tensor, probs: Tensor) -> Tensor:
    """Share of the labels in each class."""
    return torch.bincount(labels, minlength=probs.shape[-1]) / len(labels)


def confidence(labels: Tensor, probs: Tensor) -> Tensor:
    """Share of the labels that are the most probable class; replicated ones agree as often as the mean confidence."""
    return (probs.argmax(-1) == labels).float().mean()


def entropy(labels: Tensor, probs: Tensor) -> Tensor:
    """Mean surprise at the labels, in nats; that at replicated ones is the mean entropy."""
    return -probs.clamp_min(1e-12).log().gather(-1, labels.unsqueeze(-1)).mean()


def class_error(labels: Tensor, probs: Tensor) -> Tensor:
    """For each class, the share of the images with that label whose most probable class is another; 0 without any."""
    there = torch.bincount(labels, minlength=probs.shape[-1])
    wrong = torch.bincount(labels[probs.argmax(-1) != labels], minlength=probs.shape[-1])
    return wrong / there.clamp_min(1)


STATISTICS: Mapping[str, Statistic] = {
    "class frequency": class_frequencies,
    "confidence": confidence,
    "entropy": entropy,
    "class error": class_error,
}


def predictive_check(
    labels: Tensor, replicated: Tensor, probs: Tensor, statistics: Mapping[str, Statistic] = STATISTICS
) -> pd.DataFrame:
    """Compare labels with replicated ones.

    A statistic sees the labels and the mean predictive probabilities. So if the labels come from the model
    (and the probabilities do not depend on them, as on test images), observed and replicated statistics have the
    same distribution, and p-values are uniform.

    Args:
        labels: observed (n,).
        replicated: (draws, n).
        probs: mean predictive probabilities (n, classes).
        statistics: by name.

    Returns:
        A row for each statistic and class: ``statistic``; ``class``, missing where it is one number;
        ``observed``; ``replicated``, the mean; ``lower`` and ``upper``, the central 90 % of the replicated;
        ``p_value``, the share of replicated ones that are larger, ties counted half; ``fails``, whether that is within
        `LEVEL` / 2 of 0 or 1.

    Raises:
        InputError: if shapes do not fit, or there are too few draws for any check to fail.
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
        observed = torch.atleast_1d(statistic(labels, probs)).double()
        draws = torch.stack([torch.atleast_1d(statistic(each, probs)) for each in replicated]).double()
        larger = (draws > observed).double().sum(0) + ((draws == observed).double().sum(0) + 1) / 2
        p_values = larger / (len(draws) + 1)
        lower, upper = draws.quantile(torch.tensor([0.05, 0.95], dtype=torch.double), 0)
        for k, p in enumerate(p_values.tolist()):
            rows.append(
                {
                    "statistic": name,
                    "class": k if len(observed) > 1 else None,
                    "observed": float(observed[k]),
                    "replicated": float(draws[:, k].mean()),
                    "lower": float(lower[k]),
                    "upper": float(upper[k]),
                    "p_value": p,
                    "fails": min(p, 1 - p) < LEVEL / 2,
                }
            )
    return pd.DataFrame(rows).astype({"class": "Int64"})


def posterior_predictive_check(
    posterior: Posterior,
    data: Images,
    statistics: Mapping[str, Statistic] = STATISTICS,
    draws: int = 400,
    seed: int = 0,
) -> pd.DataFrame:
    """`predictive_check` of data against labels replicated from the posterior, best of images held out.

    On the training images, which the posterior knows, p-values crowd around one half.

    Args:
        posterior: of a fit.
        data: labelled images.
        statistics: by name.
        draws: replications.
        seed: of the draws.
    """
    return _check(posterior.draws(draws, seed), data, statistics, seed, posterior.logit_scale)


def prior_predictive_check(
    model: IsingViT,
    data: Images,
    statistics: Mapping[str, Statistic] = STATISTICS,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """`predictive_check` of data against labels replicated from the prior, its interaction included.

    What fails here the prior thinks impossible. Learned biases and norms are as they are in the model.

    Args:
        model: fitted or not.
        data: labelled images.
        statistics: by name.
        draws: replications.
        seed: of the draws.

    Raises:
        NotImplementedError: if the prior cannot draw, see `Prior.draw_masks`.
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
    """Leave-one-out by importance sampling from a guide.

    Attributes:
        elpd: sum of the log predictive densities of each label, given all others, in nats.
        se: its standard error, from the spread among the images.
        pointwise: (n,).
        k: shape of the tail of each image's importance weights, (n,). Above 0.7 the estimate is not reliable.
        k_hat: that of the guide as a whole. Above 0.7 the guide is far from the posterior, as a
            mean-field one of thousands of weights always is; its predictions may be good all the same, but
            importance sampling cannot correct it.
    """

    elpd: float
    se: float
    pointwise: np.ndarray
    k: np.ndarray
    k_hat: float

    @property
    def reliable(self) -> bool:
        """Whether no k is above 0.7."""
        return bool(self.k_hat <= 0.7 and (self.k <= 0.7).all())


def leave_one_out(posterior: Posterior, train: Images, draws: int = 1000, seed: int = 0) -> LeaveOneOut:
    r"""PSIS k-hat of a guide, and leave-one-out corrected for the guide not being the posterior.

    With temperature T, draws :math:`\theta_s` from the guide q have the importance weights
    :math:`\log p(\theta_s) - \log q(\theta_s) + \frac1T \sum_i \log p(y_i \mid \theta_s)` for the posterior, and
    :math:`\frac1T \log p(y_j \mid \theta_s)` less for the one without image j. What they then say of it is calibrated.

    `arviz.loo` on `to_inference_data` has no such weights: it takes the draws for exact ones at T = 1.

    Args:
        posterior: of a fit.
        train: the images it was trained on (not augmented).
        draws: from the guide.
        seed: of the draws.

    Raises:
        InputError: if there are too few draws for a tail.
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
