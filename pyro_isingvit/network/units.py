"""The table of all parts of a `ViT`: its weight sites, and the units that their weights share.

Couplings of the Ising prior, masks shared by whole units, levels of inclusion and of pruning, constant contributions of
units that are cut, and the labels of pictures are all derived from it.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .sites import LAYER

INNER = ("head", "head_dim")

SITES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "patch_embed": (("dim", "patch"), ("patch",), ("dim",)),
    "encoder.query": ((LAYER, *INNER, "dim"), ("dim",), INNER),
    "encoder.key": ((LAYER, *INNER, "dim"), ("dim",), INNER),
    "encoder.value": ((LAYER, *INNER, "dim"), ("dim",), INNER),
    "encoder.out": ((LAYER, "dim", *INNER), INNER, ("dim",)),
    "encoder.up": ((LAYER, "hidden", "dim"), ("dim",), ("hidden",)),
    "encoder.down": ((LAYER, "dim", "hidden"), ("hidden",), ("dim",)),
    "classifier.hidden": (("classifier_hidden", "dim"), ("dim",), ("classifier_hidden",)),
    "classifier.out": (("class", "classifier_hidden"), ("classifier_hidden",), ("class",)),
}
"""Weight sites in the order of their use: all dimensions, those that are summed over, those of the result."""


@dataclass(frozen=True)
class Unit:
    """A part of a network that can be cut as a whole.

    Attributes:
        name: name of the kind of unit.
        level: level of `prune` that decides on this kind; ``head_dim`` decides on two kinds.
        dims: dimensions that index the units of this kind.
        writers, readers: sites whose weights lead into a unit, and out of it. A unit is alive if each of them has a
            weight that is kept. (Queries and keys both lead into a unit; their product leads out.)
        owns: sites whose weights are removed with the unit; its writers and readers if empty.
        parts: finer units that it consists of. Without writers and readers of its own, it is alive if one of them is.
        norm: bias of the LayerNorm before the writers, the centre of their input.
        bias: bias that is added to the output of the writers.
        activation: activation function that is applied to the sum.
        constant: bias that the constant contribution of a unit that is cut is added to.
    """

    name: str
    level: str
    dims: tuple[str, ...]
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    owns: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    norm: str = ""
    bias: str = ""
    activation: Callable[[Tensor], Tensor] | None = None
    constant: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "owns", self.owns or self.sites)

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites whose weights lead into or out of the unit: writers, then readers."""
        return self.writers + self.readers


_ATTENTION = tuple(f"encoder.{role}" for role in ("query", "key", "value", "out"))

UNITS: Mapping[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit(
            name="hidden",
            level="hidden",
            dims=(LAYER, "hidden"),
            writers=("encoder.up",),
            readers=("encoder.down",),
            norm="encoder.mlp_norm_bias",
            bias="encoder.up_bias",
            activation=F.gelu,
            constant="encoder.down_bias",
        ),
        Unit(
            name="value",
            level="head_dim",
            dims=(LAYER, *INNER),
            writers=("encoder.value",),
            readers=("encoder.out",),
            norm="encoder.attention_norm_bias",
            bias="encoder.value_bias",
            constant="encoder.out_bias",
        ),
        Unit(
            name="query_key",
            level="head_dim",
            dims=(LAYER, *INNER),
            writers=("encoder.query", "encoder.key"),
            norm="encoder.attention_norm_bias",
            bias="encoder.query_bias",
        ),
        Unit(
            name="classifier_hidden",
            level="classifier_hidden",
            dims=("classifier_hidden",),
            writers=("classifier.hidden",),
            readers=("classifier.out",),
            norm="norm.bias",
            bias="classifier.hidden_bias",
            activation=F.relu,
            constant="classifier.out_bias",
        ),
        Unit(
            name="head",
            level="head",
            dims=(LAYER, "head"),
            writers=("encoder.value",),
            readers=("encoder.out",),
            owns=_ATTENTION,
            parts=("value",),
        ),
        Unit(
            name="block",
            level="block",
            dims=(LAYER,),
            owns=(*_ATTENTION, "encoder.up", "encoder.down"),
            parts=("value", "hidden"),
        ),
        Unit(
            name="patch",
            level="patch",
            dims=("patch",),
            readers=("patch_embed",),
            constant="patch_embed_bias",
        ),
    )
}
"""All kinds of units that can be cut, by name."""

RESIDUAL = Unit(
    name="residual",
    level="",
    dims=("dim",),
    writers=("patch_embed", "encoder.out", "encoder.down"),
    readers=("encoder.query", "encoder.key", "encoder.value", "encoder.up", "classifier.hidden"),
)
"""Dimensions of the residual stream, which all blocks write to and read. They are not cut."""

LEVELS: tuple[str, ...] = tuple(dict.fromkeys(unit.level for unit in UNITS.values()))
"""Levels that `prune` can decide on, besides single weights."""


def is_complete(unit: Unit, sites: Container[str]) -> bool:
    """Whether a network with these sites has everything that says whether such a unit is alive."""
    return all(site in sites for site in unit.sites) and all(
        is_complete(UNITS[part], sites) for part in unit.parts if not unit.sites
    )


def units_at(level: str) -> tuple[Unit, ...]:
    """The kinds of units that a level of `prune` decides on."""
    return tuple(unit for unit in UNITS.values() if unit.level == level)


def is_part(level: str, whole: str) -> bool:
    """Whether the units of one level are parts of those of another."""
    coarse, fine = units_at(whole)[0].dims, units_at(level)[0].dims
    return len(coarse) < len(fine) and fine[: len(coarse)] == coarse
