"""How many weights a prior keeps, and the inclusion probability with which it keeps a given number."""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_isingvit.distributions.ising import EXACT_LIMIT
from pyro_isingvit.errors import InputError, check_count

EXACT_DRAWS = 4000
"""Number of independent draws at each step of the search for an inclusion probability."""

MASKS, FEWEST, MOST = 100_000, 20, 150
"""Number of masks in all draws from a Gibbs chain at each step together, and fewest and most draws."""

LOG_ODDS = 14.0
"""Largest absolute log odds of an inclusion probability that is searched for."""

PRECISION = 0.01
"""Precision of the log odds."""

TOLERANCE = 0.1
"""Largest error of the expected number, as a share of it, that is accepted."""


@torch.no_grad()
def numbers_kept(prior: Any, draws: int = 200, units: bool = False, seed: int = 0) -> Tensor:
    """Numbers of weights that are kept in draws from a prior, including the interaction of its masks.

    Args:
        prior: a `Prior` with masks.
        draws: number of draws; of many coupled masks, from one Gibbs chain.
        units: whether to count masks, each of which may be that of a whole unit, in place of weights with masks.
        seed: seed of the draws.

    Returns:
        One number for each draw, (draws,).

    Raises:
        InputError: if the prior has no masks, or ``draws`` is below 1.
        NotImplementedError: if the interaction of the prior does not implement `draw`.
    """
    check_count("draws", draws, 1_000_000)
    devices = [prior.zero.device] if prior.zero.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        every = prior.draw_masks(draws)
    if not every:
        raise InputError(f"prior={type(prior).__name__}: has no masks, so that it keeps all weights")
    kept = torch.zeros(draws, dtype=torch.float64)
    for name, masks in every.items():
        shared = 1 if units else prior.sites[name].numel // masks[0].numel()
        kept += shared * masks.flatten(1).double().sum(1).cpu()
    return kept


def mask_counts(prior: Any) -> dict[str, int]:
    """Number of masks of each site that has them, by name."""
    bases, _ = _bases(prior)
    return {name: base.event_shape.numel() for name, base in bases.items()}


def _bases(prior: Any) -> tuple[dict[str, Any], bool]:
    """Base measures of the sites with masks, by name, and whether they depend on latent variables of the prior."""
    with poutine.block(), torch.random.fork_rng(devices=[]):
        traces = {name: poutine.trace(prior.mask).get_trace(site) for name, site in prior.sites.items()}
    bases = {name: trace.nodes["_RETURN"]["value"] for name, trace in traces.items()}
    latent = any(trace.stochastic_nodes for trace in traces.values())
    return {name: base for name, base in bases.items() if base is not None}, latent


def _exact_number(prior: Any, units: bool) -> float | None:
    """Expected number of weights, or units, that are kept; None if masks are coupled or their prior is unknown."""
    bases, latent = _bases(prior)
    if latent or prior.interaction is not None:
        return None
    shared = {name: 1 if units else prior.sites[name].numel // base.event_shape.numel() for name, base in bases.items()}
    return sum(shared[name] * float(base.mean.double().sum()) for name, base in bases.items())


def inclusion_expecting(make: Callable[[float], Any], weights: float | None, units: float | None) -> float:
    """The inclusion probability with which a prior is expected to keep a number of weights, or of units.

    Args:
        make: makes the prior with an inclusion probability.
        weights, units: the expected number; exactly one is given.

    Raises:
        InputError: if not exactly one is given, or the number cannot be reached.
    """
    from scipy.optimize import brentq

    if (weights is None) == (units is None):
        raise InputError(f"weights={weights} and units={units}: give one of them, the expected number that is kept")
    name, wanted = ("weights", weights) if units is None else ("units", units)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of two phases; the prior that is returned says so
        start = make(0.5)
        masks = mask_counts(start)
        total = sum(masks.values()) if units is not None else sum(start.sites[site].numel for site in masks)
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < total:
            raise InputError(f"{name}={wanted!r}: lies between 0 and {total:,}, the number of {name} with masks")
        share = wanted / total
        if start.interaction is None:
            alone = _exact_number(make(share), units is not None)
            if alone is None or math.isclose(alone, wanted, rel_tol=1e-5):  # as where no site has a share of its own
                return share
        number = sum(masks.values())
        draws = EXACT_DRAWS if number <= EXACT_LIMIT else max(FEWEST, min(MOST, MASKS // number))

        @cache
        def expected(log_odds: float) -> float:
            prior = make(float(torch.tensor(log_odds, dtype=torch.float64).sigmoid()))
            exact = _exact_number(prior, units is not None)
            return exact if exact is not None else float(numbers_kept(prior, draws, units is not None).mean())

        def gap(log_odds: float) -> float:
            shares = torch.tensor([expected(log_odds), wanted], dtype=torch.float64) / total
            return float(shares.logit(eps=1e-9).diff().neg())

        least, most = expected(-LOG_ODDS), expected(LOG_ODDS)
        if not least < wanted < most:
            raise InputError(
                f"{name}={wanted}: cannot be reached, as the inclusion probabilities of {type(start).__name__} that do "
                f"not depend on inclusion= keep {least:.0f} at least and {most:.0f} at most"
            )
        found = float(brentq(gap, -LOG_ODDS, LOG_ODDS, xtol=PRECISION))
        reached = expected(found)
    if abs(reached - wanted) > TOLERANCE * wanted:
        raise InputError(
            f"{name}={wanted}: cannot be reached under this interaction, where the expected number jumps (the nearest "
            f"found is {reached:.0f}); lower the coupling"
        )
    return float(torch.tensor(found, dtype=torch.float64).sigmoid())
