"""The graph of all couplings between masks, and its energy.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, Self

import torch
from torch import Tensor

from .couplings import Coupling, End, blocks_of, end_of
from .distributions import Ising
from .errors import InputError
from .network import LAYER, WeightSite, by_name
from .settings import Described, plain


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

    def _join(self, coupling: Coupling) -> tuple[End, End]:
        for name in (coupling.first, coupling.second):
            if name not in self.sites:
                raise InputError(f"coupling {coupling.name!r}: no site {name!r}; there are {list(self.sites)}")
        if coupling.first == coupling.second:
            raise InputError(f"coupling {coupling.name!r}: joins a site with itself; couple two different sites")
        first = end_of(self.sites[coupling.first], coupling, coupling.first_layers)
        second = end_of(self.sites[coupling.second], coupling, coupling.second_layers, coupling.second_units)
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
            behind.update({(name, layer): set() for layer in blocks_of(site, None)})
        for coupling in self.couplings:
            first = blocks_of(self.sites[coupling.first], coupling.first_layers)
            second = blocks_of(self.sites[coupling.second], coupling.second_layers)
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
