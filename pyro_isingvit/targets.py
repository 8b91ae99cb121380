"""Posterior predictive distributions of numbers, and of several labels of an image."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .data.images import Images
from .data.streams import chunks_of_images
from .draws import check_draws, seeded
from .errors import InputError
from .models.likelihoods import Likelihood
from .prediction import BUFFER, HasLogits, central_levels, logits_of_groups

REPLICATES = 500
"""Least number of replicated numbers behind each bound of an interval, if there are fewer draws."""


@dataclass(frozen=True)
class TargetPrediction:
    """Posterior predictive distribution of k numbers, or of k labels, of n images.

    Attributes:
        mean: mean of the numbers, or probability of the labels, (n, k).
        lower, upper: bounds of the central interval, (n, k): of a new number, with the noise of the likelihood; of the
            probability of a label over the draws, which has no noise beside it.
        spread: standard deviation of the mean over the draws, (n, k): the part of the uncertainty that more data would
            remove.
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor
    spread: Tensor


def target_predictions(
    every: Callable[[], Iterator[HasLogits]],
    draws: int,
    images: Any,
    likelihoods: Sequence[Likelihood],
    interval: float,
    device: torch.device,
    seed: int,
) -> TargetPrediction:
    """Predict numbers or several labels; see `Posterior.predict_targets` and `predictions`.

    Args:
        likelihoods: that of each member, round which the draws go.

    Raises:
        InputError: if a value is out of range, or labels are classes.
    """
    check_draws(draws)
    first = likelihoods[0]
    if first.kind == "classes":
        raise InputError(f"likelihood={type(first).__name__}: labels are classes; use predict")
    levels = central_levels(interval, device)
    parts: list[TargetPrediction] = []
    with torch.no_grad(), seeded(device, seed):
        for group in chunks_of_images(images):
            for outputs in logits_of_groups(every, draws, group, device):
                for some in outputs.split(max(1, BUFFER // ((draws + REPLICATES) * outputs.shape[-1])), 1):
                    means = _by_member(lambda likelihood, own: likelihood.mean(own), likelihoods, some)
                    noisy = _by_member(_replicated, likelihoods, some) if first.kind == "numbers" else means
                    lower, upper = noisy.quantile(levels, 0)
                    spread = means.std(0, correction=0)
                    parts.append(TargetPrediction(means.mean(0).cpu(), lower.cpu(), upper.cpu(), spread.cpu()))
    names = ("mean", "lower", "upper", "spread")
    return TargetPrediction(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def target_scores(
    every: Callable[[], Iterator[HasLogits]],
    draws: int,
    held_out: Images,
    likelihoods: Sequence[Likelihood],
    interval: float,
    device: torch.device,
    seed: int,
) -> dict[str, float]:
    """Scores of such predictions; see `Posterior.target_scores`."""
    found = target_predictions(every, draws, held_out.images, likelihoods, interval, device, seed)
    labels, losses, start = held_out.labels.cpu(), [], 0
    with torch.no_grad():
        for outputs in logits_of_groups(every, draws, held_out.images, device):
            of_group = held_out.labels[start : start + outputs.shape[1]].to(device)
            log_probs = _by_member(partial(_log_probs, of_group), likelihoods, outputs)
            losses.append(math.log(draws) - log_probs.logsumexp(0).cpu())
            start += outputs.shape[1]
    scores = {"nll": float(torch.cat(losses).mean())} | likelihoods[0].errors(found.mean, labels)
    if likelihoods[0].kind == "numbers":
        inside = (labels >= found.lower) & (labels <= found.upper)
        scores |= {"coverage": float(inside.float().mean()), "width": float((found.upper - found.lower).mean())}
    return scores


def _by_member(
    make: Callable[[Likelihood, Tensor], Tensor], likelihoods: Sequence[Likelihood], outputs: Tensor
) -> Tensor:
    """What ``make`` gives of the outputs (draws, n, k) of each member with its likelihood; draws by member."""
    members = len(likelihoods)
    return torch.cat([make(likelihood, outputs[k::members]) for k, likelihood in enumerate(likelihoods)])


def _log_probs(labels: Tensor, likelihood: Likelihood, outputs: Tensor) -> Tensor:
    return likelihood.log_prob(outputs, labels)


def _replicated(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """Numbers drawn from each draw's distribution, several of each: (replicates * draws, n, k)."""
    replicates = max(1, REPLICATES // len(outputs))
    return likelihood.distribution(outputs.repeat(replicates, 1, 1)).sample()
