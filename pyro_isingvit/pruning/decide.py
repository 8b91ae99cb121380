"""What stays: from inclusion probabilities to weights, units, heads and blocks.

References:
    Barbieri & Berger, "Optimal Predictive Model Selection", Annals of Statistics 2004 (the threshold of one half).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from ..compact import CompactViT
from ..diagnostics.inclusion import UNITS, Unit, alive_units, log_dead
from ..errors import InputError
from ..guides import Guide
from ..predict import evaluating, posterior_draws, seeded
from ..result import FitResult
from ..sites import LAYER, WeightSite
from .cut import alike, assemble, shrink, stack, take_apart

Key = TypeVar("Key", bound=str)

Level = Literal["weight", "hidden", "head_dim", "head", "block", "patch", "head_hidden"]

DEFAULT_LEVELS: tuple[Level, ...] = ("hidden", "head_dim")
"""Where most weights of a `ViT` are."""

UNITS_OF: Mapping[Level, tuple[Unit, ...]] = {
    "hidden": ("hidden",),
    "head_dim": ("head_dim", "query_key"),
    "head": ("head",),
    "block": ("block",),
    "patch": ("patch",),
    "head_hidden": ("head_hidden",),
}
"""The units, of `diagnostics.inclusion.UNITS`, that a level decides on."""


@dataclass(frozen=True)
class Decision:
    """What stays.

    Attributes:
        masks: of the weights, by site name: 0 or 1 where weights were decided on, else the inclusion probabilities.
        kept: booleans over the units, by unit.
    """

    masks: dict[str, Tensor]
    kept: dict[Unit, Tensor]


def prune(
    result: FitResult,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | None = None,
) -> CompactViT:
    """A smaller network from a posterior: plain torch, without Pyro and without the parts that are cut.

    * At level ``"weight"`` the weights that stay have their posterior mean given that they are in.
    * At the others whole units stay or go. The weights of those that stay have their posterior mean, over masks too.
      A unit that goes leaves its mean behind, taken at the centre of the LayerNorm before it, as a bias.

    Then all that is dead is cut (see `shrink`), whatever the level.

    Args:
        result: a fitted posterior with masks. If they are fixed (by ``fine_tune``), what is out is out, and what is in
            stays unless the density has no room for it.
        level: what is decided on, one or several: ``"weight"``, ``"hidden"`` (units of the MLPs), ``"head_dim"`` (units
            of queries and keys, and of values), ``"head"``, ``"block"``, ``"patch"`` (features of a patch),
            ``"head_hidden"`` (units of the classifier).
        threshold: what is alive with at least this probability stays, see `diagnostics.inclusion.unit_inclusion`.
        density: in place of a threshold, the share of the weights to keep: the most probable parts, whatever their kind
            and block, that own so many. (Single weights are ranked among themselves.)

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: if a value is out of range, the guide has no masks, or nothing is left of the network.
    """
    decision = decide(result.guide, level, threshold, density)
    with evaluating(result.model, result.guide):
        weights = _expected_weights(result.guide, decision.masks)
    return shrink(result.model.network, weights, decision.kept)


def prune_draws(
    result: FitResult,
    draws: int = 10,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | None = None,
    seed: int = 0,
) -> CompactViT:
    """Draws from a posterior, each with the parts cut that `prune` cuts and those that it has off, as one network.

    Args:
        result, level, threshold, density: see `prune`.
        draws: from the posterior; the ensemble's members.
        seed: of the draws.

    Returns:
        The ensemble in evaluation mode, on the CPU.

    Raises:
        InputError: see `prune`.
    """
    if draws < 2:
        raise InputError(f"draws={draws}: an ensemble has at least two; prune makes a single network")
    decision = decide(result.guide, level, threshold, density)
    network, cuts = result.model.network, []
    with evaluating(result.model, result.guide), seeded(next(result.guide.parameters()).device):
        for draw in posterior_draws(result.model, result.guide, draws, seed):
            weights = draw.weights
            if "weight" in _levels(level):
                weights = {name: weight * decision.masks.get(name, 1) for name, weight in weights.items()}
            cuts.append(take_apart(network, weights, decision.kept))
    return stack([assemble(one) for one in alike(cuts)])


def decide(
    guide: Guide, level: Level | Sequence[Level] = DEFAULT_LEVELS, threshold: float = 0.5, density: float | None = None
) -> Decision:
    """What stays of a network by its posterior; see `prune` for arguments and errors."""
    levels = _levels(level)
    if not guide.mask_shapes:
        raise InputError(f"guide={type(guide).__name__} has no masks, and so nothing that says what to prune")
    if not 0 < threshold < 1:
        raise InputError(f"threshold={threshold}: a probability lies strictly between 0 and 1, e.g. 0.5")
    if density is not None and threshold != 0.5:
        raise InputError(f"density={density} and threshold={threshold}: give one of them")
    if density is not None and not 0 < density <= 1:
        raise InputError(f"density={density}: a share lies above 0 and up to 1, e.g. 0.3")
    fixed, sites = guide.model.fixed_masks, {site.name: site for site in guide.model.sites}
    masks = guide.inclusion_probabilities() if fixed is None else dict(fixed)
    if "weight" in levels:
        probs = {name: p.expand(sites[name].shape) for name, p in masks.items()}
        stays = {name: p >= threshold for name, p in probs.items()}
        if density is not None:
            stays = keep_best({name: p.double() for name, p in probs.items()}, dict.fromkeys(probs, 1), density)
        masks = {name: stay.to(probs[name].dtype) for name, stay in stays.items()}
    units: list[Unit] = [unit for one in levels if one != "weight" for unit in UNITS_OF[one]]
    # -log P(dead) ranks as P(alive) does, and also among those that are almost surely alive.
    scores = {unit: -log_dead(guide, unit) for unit in units}
    if fixed is not None:
        scores = {unit: torch.where(alive_units(guide, unit, fixed), score, -1) for unit, score in scores.items()}
    if density is None or not units:
        least = -math.log1p(-threshold) if fixed is None else 0.0
        return Decision(masks, {unit: score >= least for unit, score in scores.items()})
    sizes = {unit: _weights_of(sites, unit) // scores[unit].numel() for unit in units}
    return Decision(masks, keep_best(scores, sizes, density))


def _weights_of(sites: Mapping[str, WeightSite], unit: Unit) -> int:
    """Number of weights that all units of a kind have together."""
    if unit == "block":
        return sum(site.numel for site in sites.values() if LAYER in site.dims)
    return sum(sites[role].numel for role in UNITS[unit][1])


def keep_best(scores: Mapping[Key, Tensor], sizes: Mapping[Key, int], density: float) -> dict[Key, Tensor]:
    """Which parts to keep: the best of all kinds, as many as make up a share of the whole.

    Args:
        scores: of the parts of each kind, any shape.
        sizes: of one part of each kind.
        density: share of the sum of all sizes.

    Returns:
        Booleans in the shapes of the scores, at least one of them true.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    size = torch.cat([flat.new_full((score.numel(),), sizes[kind]) for kind, score in scores.items()])
    order = flat.argsort(descending=True, stable=True)
    share = size[order].cumsum(0) / size.sum()
    stays = torch.zeros_like(flat, dtype=torch.bool)
    stays[order[: max(1, int((share <= density + 1e-9).sum()))]] = True
    parts = stays.split([score.numel() for score in scores.values()])
    return {kind: part.view(score.shape) for (kind, score), part in zip(scores.items(), parts, strict=True)}


def _expected_weights(guide: Guide, probs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Posterior mean of every weight whose mask is 1 with a given probability."""
    inside, outside = (
        guide.mean_weights({name: torch.full_like(p, value) for name, p in probs.items()}) for value in (1.0, 0.0)
    )
    return {name: outside[name] + probs.get(name, 1.0) * (inside[name] - outside[name]) for name in inside}


def _levels(level: Level | Sequence[Level]) -> tuple[Level, ...]:
    levels: tuple[Level, ...] = (level,) if isinstance(level, str) else tuple(level)
    unknown = [one for one in levels if one not in get_args(Level)]
    if unknown or not levels:
        raise InputError(f"level={unknown[0] if unknown else levels!r}: choose of {list(get_args(Level))}")
    return levels
