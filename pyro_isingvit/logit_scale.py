"""The logit scale: a factor on the logits, chosen to suit held-out images (temperature scaling).

References:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

import math

import torch
from torch import Tensor

from .errors import TrainingError

SCALES = -4, 2, 97
"""Candidate scales: the first and last exponent of 2, and the number of scales."""

SPREAD = 0.25
"""Scale of the Laplace prior of the logarithm of the logit scale."""


def best_logit_scale(log_probs: Tensor, labels: Tensor) -> float:
    """The logit scale of given predictions; see `most_probable_scale`.

    Args:
        log_probs: log-probabilities (n, classes), which serve as logits.
        labels: (n,), the true classes.

    Raises:
        TrainingError: if the log-probabilities are not finite.
    """
    return most_probable_scale(scaled_log_likelihood(log_probs, labels))


def scale_logits(log_probs: Tensor, scale: float) -> Tensor:
    """Log-probabilities (n, classes) after the logits behind them are multiplied by a scale."""
    return (scale * log_probs).log_softmax(-1)


def scaled_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of each label under logits (n, classes) at each candidate scale, (scales, n)."""
    scaled = torch.linspace(*SCALES, device=logits.device).exp2().view(-1, 1, 1) * logits
    index = labels.to(logits.device).view(1, -1, 1).expand(len(scaled), -1, -1)
    return scaled.gather(-1, index).squeeze(-1) - scaled.logsumexp(-1)


def most_probable_scale(log_likelihood: Tensor) -> float:
    """The candidate scale with the highest posterior density.

    The prior of its logarithm is a Laplace distribution around 0 of scale 1/4: a factor of e costs four nats. Without a
    prior, a few hundred images that happen to be classified correctly would sharpen predictions without limit. Networks
    that are strongly overconfident make enough errors to outweigh the prior.

    Args:
        log_likelihood: (scales, n), in nats, up to a constant.

    Returns:
        The scale, between 1/16 and 4, accurate to 2 %. It is below 1 if the predictions were overconfident, and above 1
        if they were underconfident.

    Raises:
        TrainingError: if the log-likelihood is not finite.
    """
    exponents = torch.linspace(*SCALES, device=log_likelihood.device)
    log_prior = -(exponents.double() * math.log(2) / SPREAD).abs()
    log_posterior = log_likelihood.double().sum(-1) + log_prior
    if not log_posterior.isfinite().all():
        raise TrainingError("no finite NLL of the held-out images: training has diverged; try a lower learning_rate")
    return float(exponents[log_posterior.argmax()].exp2())
