"""Decide which weights, units, heads and blocks to keep, from inclusion probabilities.

References:
    Barbieri & Berger, "Optimal Predictive Model Selection", Annals of Statistics 2004 (the threshold of one half).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..diagnostics.units import alive_units, log_dead
from ..errors import InputError, check_fraction
from ..network import ViT
from ..network.units import LEVELS, UNITS, is_complete, is_part, units_at
from ..posterior import Posterior

Key = TypeVar("Key", bound=str)

Level = str
"""``"weight"``, or one of `pyro_isingvit.network.units.LEVELS`."""

DEFAULT_LEVELS: tuple[Level, ...] = ("hidden", "head_dim")
"""The levels that have most of the weights of a `ViT`."""


@dataclass(frozen=True)
class Decision:
    """Which weights and units to keep.

    Attributes:
        levels: the levels that were decided on.
        masks: masks of the weights, by site name.
        kept: booleans over the units, by the name of the kind of unit.
    """

    levels: tuple[Level, ...]
    masks: dict[str, Tensor]
    kept: dict[str, Tensor]


def decide(
    posterior: Posterior,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | Mapping[Level, float] | None = None,
) -> Decision:
    """Decide what to keep of a network by its posterior, which is no mixture; see `prune` for arguments and errors."""
    levels = _levels(level if not isinstance(density, Mapping) else tuple(density))
    _check(posterior, levels, threshold, density)
    shares: Mapping[Level, float | None] = density if isinstance(density, Mapping) else dict.fromkeys(levels, density)
    groups: list[tuple[Level, ...]] = [(one,) for one in levels] if isinstance(density, Mapping) else [levels]
    masks = _weights_that_stay(posterior, threshold, shares.get("weight"))
    kept: dict[str, Tensor] = {}
    sites = {site.name for site in posterior.model.sites}
    for group in groups:
        units = [unit.name for one in group if one != "weight" for unit in units_at(one) if is_complete(unit, sites)]
        kept |= _units_that_stay(posterior, units, set(masks), threshold, shares[group[0]])
    return Decision(levels, masks, kept)


def _check(
    posterior: Posterior, levels: Sequence[Level], threshold: float, density: float | Mapping[Level, float] | None
) -> None:
    guide, network = posterior.guide, posterior.model.network
    if not guide.mask_shapes:
        raise InputError(f"guide={type(guide).__name__} has no masks, and so nothing that says what to prune")
    if not isinstance(network, ViT):
        raise InputError(
            f"network={type(network).__name__}: only a ViT can be cut; prune_module cuts what adapt has made"
        )
    check_fraction("threshold", threshold, "0.5")
    if density is None:
        return
    if threshold != 0.5:
        raise InputError(f"density={density} and threshold={threshold}: give one of them")
    if nested := _nested(levels):
        raise InputError(f"level={levels} with density={density}: {nested}; leave one out")
    shares: list[Any] = list(density.values()) if isinstance(density, Mapping) else [density]
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) <= 1:
            raise InputError(f"density={density!r}: give a share for each level, above 0 and up to 1, e.g. 0.3")


def _weights_that_stay(posterior: Posterior, threshold: float, density: float | None) -> dict[str, Tensor]:
    """Masks of the weights to keep, by site name."""
    shapes = {site.name: site.shape for site in posterior.model.sites}
    probs = {name: p.expand(shapes[name]) for name, p in posterior.inclusion_probabilities().items()}
    fixed = posterior.model.fixed_masks
    if fixed is not None:
        within = {name: mask.expand(shapes[name]) > 0 for name, mask in fixed.items()}
        probs = {name: torch.where(mask, probs.get(name, torch.ones(())), -1.0) for name, mask in within.items()}
    if density is None:
        least = threshold if fixed is None else 0.0
        stays = {name: p >= least for name, p in probs.items()}
    else:
        best = keep_best({name: p.double() for name, p in probs.items()}, dict.fromkeys(probs, 1), density)
        stays = {name: stay & (probs[name] >= 0) for name, stay in best.items()}
    return {name: stay.to(probs[name].dtype) for name, stay in stays.items()}


def _units_that_stay(
    posterior: Posterior, units: Sequence[str], masked: set[str], threshold: float, density: float | None
) -> dict[str, Tensor]:
    """Booleans over the units of several kinds, which are ranked together.

    Kinds of units whose weights have no masks are kept whole, and do not count towards the density.
    """
    # -log P(dead) has the same order as P(alive), and still distinguishes units that are almost surely alive.
    scores = {unit: -log_dead(posterior, unit) for unit in units}
    fixed = posterior.model.fixed_masks
    if fixed is not None:
        scores = {unit: torch.where(alive_units(posterior, unit, fixed), score, -1) for unit, score in scores.items()}
    least = threshold if fixed is None else 0.0
    kept = {unit: score >= -math.log1p(-least) for unit, score in scores.items()}
    ranked = {unit: score for unit, score in scores.items() if all(set(sites) & masked for sites in _said_of(unit))}
    if density is not None and ranked:
        weights = {site.name: site.numel for site in posterior.model.sites}
        sizes = {
            unit: sum(weights.get(site, 0) for site in UNITS[unit].owns) // ranked[unit].numel() for unit in ranked
        }
        kept |= keep_best(ranked, sizes, density)
    return kept


def _nested(levels: Sequence[Level]) -> str | None:
    """A phrase that names a level that is part of another; None if there is no such level."""
    units = sorted(level for level in levels if level != "weight")
    pairs = [(part, whole) for whole in units for part in units if is_part(part, whole)]
    return "{} is part of {}".format(*pairs[0]) if pairs else None


def _said_of(unit: str) -> list[tuple[str, ...]]:
    """The sites whose masks decide whether a unit is alive; for a block, one tuple for each kind of its units."""
    known = UNITS[unit]
    return [known.sites] if known.sites else [UNITS[part].sites for part in known.parts]


def keep_best(scores: Mapping[Key, Tensor], sizes: Mapping[Key, int], density: float) -> dict[Key, Tensor]:
    """Keep the parts with the highest scores, up to a share of the total size.

    Args:
        scores: scores of the parts by kind, of any shape. Parts of all kinds are ranked together.
        sizes: size of one part of each kind.
        density: largest share of the total size to keep.

    Returns:
        Booleans in the shapes of the scores, true for parts to keep. At least one is true.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    size = torch.cat([flat.new_full((score.numel(),), sizes[kind]) for kind, score in scores.items()])
    order = flat.argsort(descending=True, stable=True)
    share = size[order].cumsum(0) / size.sum()
    stays = torch.zeros_like(flat, dtype=torch.bool)
    stays[order[: max(1, int((share <= density + 1e-9).sum()))]] = True
    parts = stays.split([score.numel() for score in scores.values()])
    return {kind: part.view(score.shape) for (kind, score), part in zip(scores.items(), parts, strict=True)}


def _levels(level: Level | Sequence[Level]) -> tuple[Level, ...]:
    levels: tuple[Level, ...] = tuple(level) if isinstance(level, list | tuple) else (cast(Level, level),)
    possible = ("weight", *LEVELS)
    unknown = [one for one in levels if one not in possible]
    if unknown or not levels:
        raise InputError(f"level={unknown[0] if unknown else levels!r}: choose of {list(possible)}")
    return levels
