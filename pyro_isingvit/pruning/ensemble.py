"""Networks that were cut from one geometry, padded to the same shape, as one network."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from .compact import CompactViT
from .cut import Cut, Head, Part, assemble

_SHARED = ("stem.", "patch_index")
"""Prefixes of the names of parameters and buffers that all members share."""


def stacked(cuts: Sequence[Cut]) -> CompactViT:
    """One network of one cut; an ensemble of several.

    Raises:
        InputError: if nothing is left of a network, or the convolutions of their stems differ, as an ensemble has one
            stem.
    """
    return assemble(cuts[0]) if len(cuts) == 1 else _stack([assemble(one) for one in _alike(cuts)])


def _alike(cuts: Sequence[Cut]) -> list[Cut]:
    """Pad several cuts of one network with dead parts to the same shape, the largest of each part."""
    patches = torch.stack([one.patches for one in cuts]).any(0)
    units = max(len(one.classifier[0]) for one in cuts)
    columns = [_parts_alike(parts) for parts in zip(*(one.parts for one in cuts), strict=True)]
    padded = []
    for one, parts in zip(cuts, zip(*columns, strict=True), strict=True):
        hidden, hidden_bias, out, out_bias = one.classifier
        classifier = _padded(hidden, units), _padded(hidden_bias, units), _padded(out.mT, units).mT, out_bias
        padded.append(replace(one, patches=patches, parts=parts, classifier=classifier))
    return padded


def _stack(networks: Sequence[CompactViT]) -> CompactViT:
    """Stack networks of the same configuration into one."""
    states = [network.state_dict() for network in networks]
    for name, first in states[0].items():
        if name.startswith("stem.") and not all(torch.equal(first, state[name]) for state in states):
            raise InputError(f"posterior: its members differ in {name}, and an ensemble has one; prune each of them")
    ensemble = CompactViT(replace(networks[0].config, members=len(networks)))
    ensemble.load_state_dict(
        {
            name: first if name.startswith(_SHARED) else torch.stack([state[name] for state in states])
            for name, first in states[0].items()
        }
    )
    return ensemble.eval()


def _parts_alike(parts: Sequence[Part]) -> list[Part]:
    if parts[0].mlp is not None:
        hidden = max(len(part.mlp[0]) for part in parts if part.mlp is not None)
        mlps = [part.mlp for part in parts if part.mlp is not None]
        padded = [(_padded(up, hidden), _padded(bias, hidden), _padded(down.mT, hidden).mT) for up, bias, down in mlps]
        return [replace(part, mlp=mlp) for part, mlp in zip(parts, padded, strict=True)]
    number = max(len(part.heads) for part in parts)
    if not number:
        return list(parts)
    dim = len(parts[0].bias)
    looks, width = (max(head.size[i] for part in parts for head in part.heads) for i in (0, 1))
    nothing = torch.zeros(0, dim).double()
    empty = Head(nothing, torch.zeros(0).double(), nothing, nothing, nothing.mT)
    return [
        replace(
            part,
            heads=tuple(_wider(head, looks, width) for head in (*part.heads, *[empty] * (number - len(part.heads)))),
        )
        for part in parts
    ]


def _wider(head: Head, looks: int, width: int) -> Head:
    """A head padded with zeros to given widths of query and value."""
    return Head(
        _padded(head.query, looks),
        _padded(head.query_bias, looks),
        _padded(head.key, looks),
        _padded(head.value, width),
        _padded(head.out.mT, width).mT,
    )


def _padded(values: Tensor, length: int) -> Tensor:
    """Values padded with zeros to a length along the first dimension."""
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])
