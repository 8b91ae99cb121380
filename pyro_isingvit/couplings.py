"""Couplings between the masks of weights that share a unit, and the list of them for a `ViT`.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .network import LAYER
from .network.units import RESIDUAL, SITES, UNITS

Layers = int | slice | None


@dataclass(frozen=True, eq=False)
class Coupling:
    """The masks of two weights interact at each unit they share.

    With ``a_u`` and ``b_u`` the mean spins of the two weights at unit ``u``, the energy is
    ``strength * n_u * sum_u a_u * b_u``, where ``n_u`` is the smaller of the two numbers of weights at a
    unit. Hence the log odds of a mask change by at most ``2 * strength``.

    Attributes:
        first, second: names of two different sites.
        units: the dimensions, by name, that make up a shared unit; both sites have them.
        strength: strength of this coupling, in multiples of the common strength of the prior.
        first_layers, second_layers: which blocks of a site take part: all, one, or a slice. Two
            slices are matched in order, which is how a block is coupled to the next.
    """

    first: str
    second: str
    units: tuple[str, ...]
    strength: float = 1.0
    first_layers: Layers = None
    second_layers: Layers = None

    @property
    def name(self) -> str:
        """``first~second``, with the blocks where not all take part."""

        def part(site: str, layers: Layers) -> str:
            if isinstance(layers, slice):
                return f"{site}[{layers.start or ''}:{layers.stop or ''}]"
            return site if layers is None else f"{site}[{layers}]"

        return f"{part(self.first, self.first_layers)}~{part(self.second, self.second_layers)}"


EARLIER, LATER = slice(None, -1), slice(1, None)


def _within_units() -> Iterator[Coupling]:
    """Couplings at units that exactly two sites share."""
    for unit in UNITS.values():
        if len(unit.sites) == 2 and not unit.parts:
            yield Coupling(*unit.sites, unit.dims)


def _along_the_residual_stream() -> Iterator[Coupling]:
    """Couplings of every site that writes to the residual stream with the sites that read it next."""
    names = list(SITES)
    blocks = [name for name in names if LAYER in SITES[name][0]]

    def next_readers(sites: Iterable[str]) -> list[str]:
        until = itertools.takewhile(lambda name: name not in RESIDUAL.writers, sites)
        return [name for name in until if name in RESIDUAL.readers]

    for writer in RESIDUAL.writers:
        behind = names[names.index(writer) + 1 :]
        in_block = next_readers(name for name in behind if name in blocks)
        if writer not in blocks:
            yield from (Coupling(writer, reader, RESIDUAL.dims, 1.0, None, 0) for reader in in_block)
        elif in_block:
            yield from (Coupling(writer, reader, (LAYER, *RESIDUAL.dims)) for reader in in_block)
        else:  # the last site of its block: with the next block, and in the last block with what follows the encoder
            for reader in next_readers(blocks):
                yield Coupling(writer, reader, (LAYER, *RESIDUAL.dims), 1.0, EARLIER, LATER)
            for reader in next_readers(name for name in behind if name not in blocks):
                yield Coupling(writer, reader, RESIDUAL.dims, 1.0, -1, None)


VIT_COUPLINGS = (*_within_units(), *_along_the_residual_stream())
"""The couplings of a `ViT`: within a block through its hidden and attention units, and along the residual stream."""
