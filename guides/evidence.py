"""The evidence for a weight, to second order about its mean; see `LikelihoodGuided` for the target it belongs to."""

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_isingvit.distributions import Gaussian


def log_evidence_ratio(
    pull: Callable[[Distribution, Tensor], Tensor],
    slab: Distribution,
    prior: Distribution,
    curvature: Tensor,
    own: float,
    temperature: float | None,
    shared: Callable[[Tensor], Tensor],
) -> Tensor:
    """Log evidence with each weight kept, less that with it dropped.

    Args:
        pull: the gain in log-likelihood from keeping each weight, from its distribution and the derivative of the
            log-likelihood at its mean; see `Estimator.pull`.
        slab, prior: distribution of each weight if it is kept, in the posterior and in the prior.
        curvature: of the negative log-likelihood in each weight.
        own: temperature at which the posterior of the weights is stationary.
        temperature: temperature of the evidence; None for ``own``.
        shared: the precisions of weights that share a scale, from those of single ones.
    """
    mean, precision = moments(prior)
    offset = slab.mean - mean
    if temperature is None:
        temperature = own
    else:
        offset = offset * (curvature + own * precision) / (curvature + temperature * precision)
        slab = Gaussian(mean + offset, -0.5 * shared(curvature / temperature + precision).log())
    return pull(slab, temperature * precision * offset) / temperature - divergence(slab, prior)


def moments(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and precision of each element, which broadcast to the batch shape."""
    if isinstance(prior, Gaussian):
        loc, log_scale = prior.given
        return loc, (-2 * log_scale).exp()
    return prior.mean, 1 / prior.variance


def divergence(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) of each element; where there is no closed form, from one draw, since updates average over many."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        draw = q.sample()
        return q.log_prob(draw) - p.log_prob(draw)
