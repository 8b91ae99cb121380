"""Small networks from a posterior: what it keeps, as one network or as an ensemble."""

from collections.abc import Mapping, Sequence

import torch

from ..errors import InputError
from ..posterior import Posterior
from .compact import CompactViT
from .cut import scale_within, take_apart
from .decide import DEFAULT_LEVELS, Level, decide
from .ensemble import stacked


def prune(
    posterior: Posterior,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | Mapping[Level, float] | None = None,
) -> CompactViT:
    """Cut a network down to what its posterior keeps: the result is plain torch, without Pyro.

    At level ``"weight"``, single weights are kept or dropped; at the other levels, whole units. The mean contribution
    of a unit that is cut stays as a bias. It is taken at the centre of the LayerNorm before the unit or, for a patch
    feature, for a plain image of ``pixel_mean``. The convolutions of a stem are not cut.

    Within units that are kept, a weight is kept if its inclusion probability reaches the threshold. With a density, the
    weights of the median-probability model are kept, except at level ``"weight"``, where the density decides. A weight
    that is kept takes its posterior mean given that it is kept. Finally all dead parts are removed, whatever the level
    (see `shrink`).

    Args:
        posterior: a posterior with masks. If the masks are fixed (by ``fine_tune``), what they drop is cut, and what
            they keep stays unless the density has no room for it.
        level: one or several levels to decide on: ``"weight"``, ``"hidden"`` (units of the MLPs), ``"head_dim"`` (units
            of queries and keys, and of values), ``"head"``, ``"block"``, ``"patch"`` (features of a patch),
            ``"classifier_hidden"`` (hidden units of the classifier).
        threshold: keep what is alive with at least this probability, see `pyro_isingvit.diagnostics.unit_inclusion`.
        density: in place of a threshold, the largest share to keep of the weights that belong to the levels. The most
            probable units are kept; units of all kinds and blocks are ranked together, single weights among themselves.
            Weights that the median-probability model drops stay dropped, except at level ``"weight"``. A mapping gives
            a share for each level, by name, and replaces ``level``.

    Returns:
        The network in evaluation mode, on the CPU. Of a mixture, an ensemble of its members, each cut on its own.

    Raises:
        InputError: if a value is out of range, the guide has no masks, nothing is left of the network, or the members
            of a mixture have convolutions of their own.
    """
    cuts = []
    for member in posterior.members:
        decision = decide(member, level, threshold, density)
        cuts.append(take_apart(member.model.network, member.mean_weights(decision.masks), decision.kept))
    return stacked(cuts)


def prune_draws(
    posterior: Posterior,
    draws: int = 10,
    level: Level | Sequence[Level] = DEFAULT_LEVELS,
    threshold: float = 0.5,
    density: float | Mapping[Level, float] | None = None,
    seed: int = 0,
) -> CompactViT:
    """Cut draws from a posterior and stack them into one network, an ensemble.

    Each draw loses the units that `prune` decides to cut, and its own dead parts. Single weights are those of the draw;
    at level ``"weight"``, those that `prune` drops are dropped too. The logits include the posterior's logit scale.

    Args:
        posterior, level, threshold, density: see `prune`.
        draws: number of draws, which are the members of the ensemble.
        seed: seed of the draws.

    Returns:
        The ensemble in evaluation mode, on the CPU.

    Raises:
        InputError: see `prune`.
    """
    if draws < 2:
        raise InputError(f"draws={draws}: an ensemble has at least two; prune makes a single network")
    members = posterior.members
    decisions = [decide(member, level, threshold, density) for member in members]
    dropped = [
        member.mean_weights({name: torch.zeros_like(mask) for name, mask in decision.masks.items()})
        for member, decision in zip(members, decisions, strict=True)
    ]
    cuts = []
    for t, draw in enumerate(posterior.draws(draws, seed)):
        decision, weights, network = decisions[t % len(members)], draw.weights, draw.model.network
        if "weight" in decision.levels:
            out = dropped[t % len(members)]
            weights = weights | {
                name: torch.where(mask > 0, weights[name], out[name]) for name, mask in decision.masks.items()
            }
        cuts.append(take_apart(network, scale_within(network, weights, posterior.logit_scale), decision.kept))
    return stacked(cuts)
