"""The common field that holds the mean inclusion probability of all weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_isingvit.errors import InputError

ROUNDS = 40
"""Rounds of bisection."""


def shift_for_density(
    log_odds: Mapping[str, Tensor], weights: Mapping[str, int], others: Mapping[str, float], density: float
) -> Tensor:
    """The shift of all log odds at which the mean inclusion probability of all weights is ``density``.

    Args:
        log_odds: of the masks that are free, by site.
        weights: number of weights of every site. Each mask of a site counts for equally many of them.
        others: mean inclusion probability of each site whose masks are not free: held masks, or none.
        density: within (0, 1).

    Raises:
        InputError: if the other sites leave no way to have this density.
    """
    free = sum(weights[site] for site in log_odds)
    kept = sum(weights[site] * share for site, share in others.items())
    total = free + sum(weights[site] for site in others)
    wanted = (density * total - kept) / free if free else -1.0
    if not 0 < wanted < 1:
        raise InputError(
            f"target_density={density}: masks that are held, and weights without masks, keep {kept / total:.2f} of "
            f"all weights, and the other masks are of {free / total:.2f}; give a density within these bounds"
        )
    odds = torch.cat([each.flatten() for each in log_odds.values()])
    sizes = torch.cat([each.new_full((each.numel(),), weights[site] / each.numel()) for site, each in log_odds.items()])
    shares = sizes / sizes.sum()
    low, high = (-odds).min() - 20, (-odds).max() + 20
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        too_many = (odds + middle).sigmoid() @ shares > wanted
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
    return (low + high) / 2
