"""The graph of all couplings between masks, and its energy.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, Self

import torch
from torch import Tensor

from .couplings import Coupling, Layers
from .distributions import Ising
from .errors import InputError
from .network import LAYER, WeightSite, by_name
from .settings import Described, plain


@dataclass(frozen=True)
class _End:
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


def _end(site: WeightSite, coupling: Coupling, layers: Layers) -> _End:
    missing = set(coupling.units) - set(site.dims)
    if missing:
        raise InputError(f"coupling {coupling.name!r}: {site.name} has no {missing}; its dims are {site.dims}")
    if isinstance(layers, int) and LAYER in coupling.units:
        raise InputError(f"coupling {coupling.name!r}: a single block has no {LAYER!r} unit; leave it out of units")
    if isinstance(layers, slice) and LAYER not in coupling.units:
        raise InputError(
            f"coupling {coupling.name!r}: blocks are matched in order by the unit {LAYER!r}; add it to units"
        )
    if layers is not None and LAYER not in site.dims:
        raise InputError(f"coupling {coupling.name!r}: {site.name} has no blocks to choose from; its dims {site.dims}")
    kept = [d for d in site.dims if d in coupling.units or (layers is not None and d == LAYER)]
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
    return _End(
        site.name,
        axes,
        layer_axis,
        layers,
        tuple(left.index(d) for d in coupling.units),
        weights,
        tuple(sizes[d] for d in coupling.units),
    )


def _layers(site: WeightSite, layers: Layers) -> list[int | None]:
    """The blocks of a site that a coupling chooses, in order; [None] for a site without blocks."""
    if LAYER not in site.dims:
        return [None]
    every = range(site.shape[site.axis(LAYER)])
    if isinstance(layers, int):
        return [every[layers]]
    return list(every if layers is None else every[layers])


class CouplingGraph(Described):
    """All couplings among the masks of a set of sites; their energy takes time linear in the number of masks.

    Args:
        sites: the sites that have masks; the masks have the shape of their site.
        couplings: the couplings of these masks; `VIT_COUPLINGS` is the list for a `ViT`.

    Raises:
        InputError: if a coupling names an unknown site, unit or block, couples a site with itself, or joins sites that
            have different numbers of units.

    Example:
        >>> sites = ViT(ViTConfig()).weight_sites()
        >>> graph = CouplingGraph(sites, VIT_COUPLINGS).without("encoder.query", "encoder.key")
        >>> float(graph.energy({site.name: torch.ones(site.shape) for site in sites}))  # doctest: +SKIP
    """

    def __init__(self, sites: Sequence[WeightSite], couplings: Iterable[Coupling]) -> None:
        self.sites = by_name(sites)
        self.couplings = tuple(couplings)
        self._ends = [self._join(coupling) for coupling in self.couplings]
        self._starts = self._number()
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def _number(self) -> dict[tuple[str, tuple[int, ...]], Tensor]:
        """Consecutive numbers for the mean spins of all ends, by site and axes, in the shape of the means."""
        numbers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        start = 0
        for end in itertools.chain.from_iterable(self._ends):
            if (end.site, end.axes) not in numbers:
                site = self.sites[end.site]
                shape = [
                    size for size, dim in zip(site.shape, site.dims, strict=True) if site.axis(dim) not in end.axes
                ]
                numbers[end.site, end.axes] = torch.arange(start, start + math.prod(shape)).view(shape)
                start += math.prod(shape)
        return numbers

    def settings(self) -> dict[str, Any]:
        return {"sites": plain(list(self.sites.values())), "couplings": plain(self.couplings)}

    def _join(self, coupling: Coupling) -> tuple[_End, _End]:
        for name in (coupling.first, coupling.second):
            if name not in self.sites:
                raise InputError(f"coupling {coupling.name!r}: no site {name!r}; there are {list(self.sites)}")
        if coupling.first == coupling.second:
            raise InputError(f"coupling {coupling.name!r}: joins a site with itself; couple two different sites")
        first = _end(self.sites[coupling.first], coupling, coupling.first_layers)
        second = _end(self.sites[coupling.second], coupling, coupling.second_layers)
        if first.shape != second.shape:
            raise InputError(
                f"coupling {coupling.name!r}: units {coupling.units} are {first.shape} in {coupling.first} "
                f"but {second.shape} in {coupling.second}; choose blocks that match"
            )
        return first, second

    def energy(self, masks: Mapping[str, Tensor], squares: Mapping[str, Tensor] | None = None) -> Tensor:
        """Sum of all couplings' energies.

        Args:
            masks: masks, or mean masks, of shape ``(*batch, *site.shape)`` by site name.
            squares: how much each weight counts in the mean spin of its unit, by site name, shape ``site.shape``; if
                None, all count alike.

        Returns:
            The energy, shape ``batch``.

        Raises:
            InputError: if the masks of a coupled site are missing.
        """
        site, mask = next((self.sites[name], mask) for name, mask in masks.items() if name in self.sites)
        batch, means = mask.shape[: mask.dim() - len(site.shape)], self._means(masks, squares)
        if not self.couplings:
            return mask.new_zeros(batch)
        spins = 2 * torch.cat([means(*key).reshape(*batch, -1) for key in self._starts], -1) - 1
        first, second, strength = self._pairs(spins.device)
        products = spins.index_select(-1, first) * spins.index_select(-1, second)
        return products @ strength.to(spins.dtype)

    def backward_pulls(
        self, masks: Mapping[str, Tensor], squares: Mapping[str, Tensor] | None = None, first: str | None = None
    ) -> Iterator[tuple[int, Coupling, Tensor]]:
        """For each coupling, twice the mean spin of its second site at the unit of each mask of its first site.

        Args:
            masks, squares: see `energy`; without batch dimensions.
            first: yield only couplings whose first site this is; None for all.

        Yields:
            The index of the coupling, the coupling, and a tensor that broadcasts to the shape of its first site.
        """
        means = self._means(masks, squares)
        for index, (coupling, (before, behind)) in enumerate(zip(self.couplings, self._ends, strict=True)):
            if first is None or coupling.first == first:
                spins = 2 * behind.select(means(behind.site, behind.axes)) - 1
                yield index, coupling, before.spread(2 * spins, self.sites[before.site])

    def _means(
        self, masks: Mapping[str, Tensor], squares: Mapping[str, Tensor] | None
    ) -> Callable[[str, tuple[int, ...]], Tensor]:
        """A function from a site and axes to the mean masks over these axes, which are computed once and shared."""

        @functools.cache
        def mean(site: str, axes: tuple[int, ...]) -> Tensor:
            if site not in masks:
                raise InputError(f"no masks of {site!r}, which is coupled: remove its couplings by without()")
            mask = masks[site]
            if axes and squares is not None:
                share = squares[site]
                mask = mask * share / share.sum(axes, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
                return mask.sum(axes)
            return mask.mean(axes) if axes else mask

        return mean

    def _pairs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs of coupled units: the places of both in the mean spins of all ends, and their strength."""
        if device not in self._on:
            places: tuple[list[Tensor], list[Tensor]] = [], []
            strengths = []
            for coupling, ends in zip(self.couplings, self._ends, strict=True):
                for found, end in zip(places, ends, strict=True):
                    found.append(end.select(self._starts[end.site, end.axes]).flatten())
                strength = coupling.strength * min(end.weights for end in ends)
                strengths.append(torch.full((len(places[0][-1]),), strength))
            first, second = (torch.cat(found).to(device) for found in places)
            self._on[device] = first, second, torch.cat(strengths).to(device)
        return self._on[device]

    def backward_order(self) -> list[tuple[str, int | None]]:
        """Site name and block (None for a site without blocks) of all masks, those behind first.

        Each comes after everything that is ``second`` in a coupling in which it is ``first``.

        Raises:
            InputError: if the couplings form a cycle.
        """
        behind: dict[tuple[str, int | None], set[tuple[str, int | None]]] = {}
        for name, site in self.sites.items():
            behind.update({(name, layer): set() for layer in _layers(site, None)})
        for coupling in self.couplings:
            first = _layers(self.sites[coupling.first], coupling.first_layers)
            second = _layers(self.sites[coupling.second], coupling.second_layers)
            matched = LAYER in coupling.units
            for a, b in zip(first, second, strict=True) if matched else itertools.product(first, second):
                behind[coupling.first, a].add((coupling.second, b))
        try:
            return list(TopologicalSorter(behind).static_order())
        except CycleError as error:
            raise InputError(f"couplings run in a circle, {error.args[1]}: turn one of them round") from None

    def without(self, first: str, second: str) -> Self:
        """The graph without the couplings of two sites, named in either order.

        Raises:
            InputError: if there are none.
        """
        pair = {first, second}
        kept = [c for c in self.couplings if {c.first, c.second} != pair]
        if len(kept) == len(self.couplings):
            raise InputError(f"no coupling of {first!r} and {second!r}; there are {[c.name for c in self.couplings]}")
        return type(self)(list(self.sites.values()), kept)

    def adding(self, *couplings: Coupling) -> Self:
        """The graph with these couplings added; errors are those of the constructor."""
        return type(self)(list(self.sites.values()), self.couplings + couplings)

    def rescaled(self, factor: float, first: str | None = None, second: str | None = None) -> Self:
        """The graph with the strengths of all couplings, or of those of the named sites, multiplied by ``factor``.

        Raises:
            InputError: if the named sites have no coupling.
        """
        named = {name for name in (first, second) if name is not None}
        if named and not any(named <= {c.first, c.second} for c in self.couplings):
            raise InputError(f"no coupling of {sorted(named)}; there are {[c.name for c in self.couplings]}")
        return type(self)(
            list(self.sites.values()),
            [replace(c, strength=c.strength * factor) if named <= {c.first, c.second} else c for c in self.couplings],
        )

    def join(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Join masks, by site name, to one vector ``(*batch, total)``."""
        return torch.cat([masks[name].flatten(-len(site.shape)) for name, site in self.sites.items()], -1)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Split one vector ``(*batch, total)`` into masks by site name."""
        parts = flat.split([site.numel for site in self.sites.values()], -1)
        return {
            name: part.unflatten(-1, site.shape) for part, (name, site) in zip(parts, self.sites.items(), strict=True)
        }

    def ising(
        self,
        fields: Mapping[str, Tensor],
        strength: float | Tensor = 1.0,
        squares: Mapping[str, Tensor] | None = None,
        sweeps: int = 100,
    ) -> Ising:
        """The `Ising` distribution of all masks as one vector.

        No coupling joins two masks of one site, so that Gibbs sampling updates all masks of a site at once.

        Args:
            fields: log odds of each mask without couplings, by site name; they broadcast to ``site.shape``.
            strength: factor on all couplings.
            squares: see `energy`.
            sweeps: number of Gibbs sweeps for each draw.
        """
        blocks, start = [], 0
        for site in self.sites.values():
            blocks.append(slice(start, start + site.numel))
            start += site.numel
        whole = {name: fields[name].expand(site.shape) for name, site in self.sites.items()}

        def interaction(spins: Tensor) -> Tensor:
            return strength * self.energy(self.split((spins + 1) / 2), squares)

        return Ising(self.join(whole), interaction, blocks, sweeps=sweeps)
