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
from ..diagnostics.inclusion import BLOCK_UNITS, UNITS, Unit, alive_units, log_dead
from ..errors import InputError
from ..guides import Guide
from ..network import ViT
from ..predict import evaluating, posterior_draws, seeded
from ..result import FitResult
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


OWNS: Mapping[str, tuple[str, ...]] = {unit: roles for unit, (_, roles) in UNITS.items()} | {
    "head": ("encoder.query", "encoder.key", "encoder.value", "encoder.out"),
    "block": tuple(f"encoder.{role}" for role in ("query", "key", "value", "out", "up", "down")),
}
"""The roles whose weights go with a unit."""

PARTS: Mapping[Level, frozenset[Level]] = {
    "head": frozenset({"head_dim"}),
    "block": frozenset({"head_dim", "head", "hidden"}),
}
"""Levels whose units are parts of another's."""


@dataclass(frozen=True)
class Decision:
    """What stays.

    Attributes:
        masks: of the weights, by site name.
        kept: booleans over the units, by unit.
    """

    masks: dict[str, Tensor]
    kept: dict[Unit, Tensor]


def prune(
    result: FitResult,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | Mapping[Level, float] | None = None,
) -> CompactViT:
    """A smaller network from a posterior: plain torch, without Pyro and without the parts that are cut.

    At level ``"weight"`` single weights stay or go. At the others whole units do. One that goes leaves its mean behind
    as a bias, taken at the centre of the LayerNorm before it; a patch feature counts as ``pixel_mean``. Within units
    that stay, weights are in if they reach the threshold (else as in the median-probability model), at their posterior
    mean given that they are in. Then all that is dead is cut (see `shrink`), whatever the level.

    Args:
        result: a fitted posterior with masks. If they are fixed (by ``fine_tune``), what is out is out, and what is in
            stays unless the density has no room for it.
        level: what is decided on, one or several: ``"weight"``, ``"hidden"`` (units of the MLPs), ``"head_dim"`` (units
            of queries and keys, and of values), ``"head"``, ``"block"``, ``"patch"`` (features of a patch),
            ``"head_hidden"`` (units of the classifier).
        threshold: what is alive with at least this probability stays, see `diagnostics.inclusion.unit_inclusion`.
        density: in place of a threshold, the share to keep, at most, of the weights that belong to what is decided on:
            those of the most probable parts, whatever their kind and block (single weights are ranked among
            themselves). What the median-probability model leaves out does not come back, except single weights. Or a
            share for each level, by its name, in place of ``level``.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: if a value is out of range, the guide has no masks, or nothing is left of the network.
    """
    decision = decide(result.guide, level, threshold, density)
    with evaluating(result.model, result.guide):
        weights = result.guide.mean_weights(decision.masks)
    return shrink(result.model.network, weights, decision.kept)


def prune_draws(
    result: FitResult,
    draws: int = 10,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | Mapping[Level, float] | None = None,
    seed: int = 0,
) -> CompactViT:
    """Draws from a posterior as one network, each without the parts that `prune` decides against, and without its own
    dead ones. At the levels of units, single weights are each draw's own.

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
        out = result.guide.mean_weights({name: torch.zeros_like(mask) for name, mask in decision.masks.items()})
        for draw in posterior_draws(result.model, result.guide, draws, seed):
            weights = draw.weights
            if "weight" in (density if isinstance(density, Mapping) else _levels(level)):
                weights = weights | {
                    name: torch.where(mask > 0, weights[name], out[name]) for name, mask in decision.masks.items()
                }
            cuts.append(take_apart(network, weights, decision.kept))
    return stack([assemble(one) for one in alike(cuts)])


def decide(
    guide: Guide,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | Mapping[Level, float] | None = None,
) -> Decision:
    """What stays of a network by its posterior; see `prune` for arguments and errors."""
    if isinstance(density, Mapping):
        levels = _levels(tuple(density))
        if nested := _nested(levels):
            raise InputError(f"density={dict(density)}: {nested}; leave one out")
        if any(share is None for share in density.values()):
            raise InputError(f"density={dict(density)}: give a share for each level, e.g. 0.3")
        each = [decide(guide, one, threshold, share) for one, share in density.items() if one != "weight"]
        masks = decide(guide, "weight", threshold, density.get("weight")).masks
        return Decision(masks, {unit: kept for one in each for unit, kept in one.kept.items()})
    levels = _levels(level)
    if not guide.mask_shapes:
        raise InputError(f"guide={type(guide).__name__} has no masks, and so nothing that says what to prune")
    if not 0 < threshold < 1:
        raise InputError(f"threshold={threshold}: a probability lies strictly between 0 and 1, e.g. 0.5")
    if density is not None and threshold != 0.5:
        raise InputError(f"density={density} and threshold={threshold}: give one of them")
    if density is not None and not 0 < density <= 1:
        raise InputError(f"density={density}: a share lies above 0 and up to 1, e.g. 0.3")
    if density is not None and (nested := _nested(levels)):
        raise InputError(f"level={levels} with density={density}: {nested}; leave one out")
    if not isinstance(guide.model.network, ViT):
        raise InputError(f"network={type(guide.model.network).__name__}: only a ViT can be cut")
    fixed, sites = guide.model.fixed_masks, {site.name: site for site in guide.model.sites}
    probs = {name: p.expand(sites[name].shape) for name, p in guide.inclusion_probabilities().items()}
    if fixed is not None:
        within = {name: mask.expand(sites[name].shape) > 0 for name, mask in fixed.items()}
        probs = {name: torch.where(mask, probs.get(name, torch.ones(())), -1.0) for name, mask in within.items()}
    least = threshold if fixed is None else 0.0
    stays = {name: p >= least for name, p in probs.items()}
    if "weight" in levels and density is not None:
        best = keep_best({name: p.double() for name, p in probs.items()}, dict.fromkeys(probs, 1), density)
        stays = {name: stay & (probs[name] >= 0) for name, stay in best.items()}
    masks = {name: stay.to(probs[name].dtype) for name, stay in stays.items()}
    units: list[Unit] = [unit for one in levels if one != "weight" for unit in UNITS_OF[one]]
    # -log P(dead) ranks as P(alive) does, and also among those that are almost surely alive.
    scores = {unit: -log_dead(guide, unit) for unit in units}
    if fixed is not None:
        scores = {unit: torch.where(alive_units(guide, unit, fixed), score, -1) for unit, score in scores.items()}
    kept = {unit: score >= -math.log1p(-least) for unit, score in scores.items()}
    # Without masks there is nothing to say against a unit: it stays, and is not counted.
    masked = {unit: score for unit, score in scores.items() if all(set(roles) & set(masks) for roles in _said_of(unit))}
    if density is not None and masked:
        sizes = {unit: sum(sites[role].numel for role in OWNS[unit]) // masked[unit].numel() for unit in masked}
        kept |= keep_best(masked, sizes, density)
    return Decision(masks, kept)


def _nested(levels: Sequence[Level]) -> str | None:
    """What is part of what, if anything is."""
    pairs = [(part, whole) for whole in levels for part in sorted(PARTS.get(whole, ())) if part in levels]
    return "{} is part of {}".format(*pairs[0]) if pairs else None


def _said_of(unit: Unit) -> list[tuple[str, ...]]:
    """The roles whose masks say whether a unit is alive; of a block, for each kind of its units."""
    return [UNITS[part][1] for part in (BLOCK_UNITS if unit == "block" else (unit,))]


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


def _levels(level: Level | Sequence[Level]) -> tuple[Level, ...]:
    levels: tuple[Level, ...] = (level,) if isinstance(level, str) or level is None else tuple(level)
    unknown = [one for one in levels if one not in get_args(Level)]
    if unknown or not levels:
        raise InputError(f"level={unknown[0] if unknown else levels!r}: choose of {list(get_args(Level))}")
    return levels
