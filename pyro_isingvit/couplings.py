"""Couplings between the masks of weights that share a unit, and the list of them for a `ViT`.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .errors import InputError
from .network import LAYER, WeightSite
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
        second_units: names of these dimensions at the second site, in the same order, if they are others there.
        first_layers, second_layers: which blocks of a site take part: all, one, or a slice. Two
            slices are matched in order, which is how a block is coupled to the next.
    """

    first: str
    second: str
    units: tuple[str, ...]
    strength: float = 1.0
    first_layers: Layers = None
    second_layers: Layers = None
    second_units: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """``first~second``, with the blocks where not all take part."""

        def part(site: str, layers: Layers) -> str:
            if isinstance(layers, slice):
                return f"{site}[{layers.start or ''}:{layers.stop or ''}]"
            return site if layers is None else f"{site}[{layers}]"

        return f"{part(self.first, self.first_layers)}~{part(self.second, self.second_layers)}"


@dataclass(frozen=True)
class End:
    """One end of a coupling: how the spins of a site are averaged to mean spins at units."""

    site: str
    axes: tuple[int, ...]  # averaged over, counted from the right
    layer_axis: int | None  # of the mean, counted from the right; None if no blocks are chosen
    layers: Layers
    order: tuple[int, ...]  # of the unit axes, so that it is the same at both ends
    weights: int  # number of weights at one unit
    shape: tuple[int, ...]  # of the units

    def select(self, mean: Tensor) -> Tensor:
        if self.layer_axis is not None:
            index = self.layers if self.layers is not None else slice(None)
            mean = mean[(..., index) + (slice(None),) * (-self.layer_axis - 1)]
        batch = mean.dim() - len(self.order)
        if self.order == tuple(range(len(self.order))):
            return mean
        return mean.permute(*range(batch), *(batch + i for i in self.order))

    def spread(self, units: Tensor, site: WeightSite) -> Tensor:
        """The reverse of averaging and `select`: takes a value for each unit to each weight of the site."""
        kept = units.permute(*(self.order.index(i) for i in range(len(self.order))))
        if self.layers is None:
            return kept.reshape([1 if i - len(site.shape) in self.axes else n for i, n in enumerate(site.shape)])
        axis = len(site.shape) + site.axis(LAYER)
        sizes = [n if i == axis or i - len(site.shape) not in self.axes else 1 for i, n in enumerate(site.shape)]
        whole = kept.new_zeros(sizes)
        index = (*(slice(None),) * axis, self.layers)
        whole[index] = kept.reshape(whole[index].shape)
        return whole


def end_of(site: WeightSite, coupling: Coupling, layers: Layers, units: tuple[str, ...] | None = None) -> End:
    """The end of a coupling at a site, of which some blocks take part.

    Args:
        units: names of the units there; those of the coupling if None.

    Raises:
        InputError: if the site lacks a unit or a block, or blocks and units do not fit together.
    """
    units = coupling.units if units is None else units
    missing = set(units) - set(site.dims)
    if missing:
        raise InputError(f"coupling {coupling.name!r}: {site.name} has no {missing}; its dims are {site.dims}")
    if isinstance(layers, int) and LAYER in units:
        raise InputError(f"coupling {coupling.name!r}: a single block has no {LAYER!r} unit; leave it out of units")
    if isinstance(layers, slice) and LAYER not in units:
        raise InputError(
            f"coupling {coupling.name!r}: blocks are matched in order by the unit {LAYER!r}; add it to units"
        )
    if layers is not None and LAYER not in site.dims:
        raise InputError(f"coupling {coupling.name!r}: {site.name} has no blocks to choose from; its dims {site.dims}")
    kept = [d for d in site.dims if d in units or (layers is not None and d == LAYER)]
    axes = tuple(site.axis(d) for d in site.dims if d not in kept)
    sizes = dict(zip(site.dims, site.shape, strict=True))
    layer_axis = kept.index(LAYER) - len(kept) if layers is not None else None
    left = [d for d in kept if not (isinstance(layers, int) and d == LAYER)]
    if isinstance(layers, int) and not -sizes[LAYER] <= layers < sizes[LAYER]:
        raise InputError(f"coupling {coupling.name!r}: block {layers} of {site.name}, which has {sizes[LAYER]}")
    if isinstance(layers, slice):
        sizes[LAYER] = len(range(*layers.indices(sizes[LAYER])))
    weights = 1
    for d in site.dims:
        if d not in kept:
            weights *= sizes[d]
    return End(
        site.name,
        axes,
        layer_axis,
        layers,
        tuple(left.index(d) for d in units),
        weights,
        tuple(sizes[d] for d in units),
    )


def blocks_of(site: WeightSite, layers: Layers) -> list[int | None]:
    """The blocks of a site that a coupling chooses, in order; [None] for a site without blocks."""
    if LAYER not in site.dims:
        return [None]
    every = range(site.shape[site.axis(LAYER)])
    if isinstance(layers, int):
        return [every[layers]]
    return list(every if layers is None else every[layers])


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
