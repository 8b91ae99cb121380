"""Masks of whole heads, hidden units and patch features.

References:
    Louizos, Ullrich & Welling, "Bayesian Compression for Deep Learning", NeurIPS 2017.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.couplings import Coupling
from pyro_isingvit.distributions import StraightThroughBernoulli
from pyro_isingvit.errors import InputError
from pyro_isingvit.interactions import CouplingGraph
from pyro_isingvit.network import LAYER, WeightSite, by_name
from pyro_isingvit.network.units import UNITS

from .ising import IsingSpikeSlab, vit_graph


def levels_of(*units: str) -> dict[str, tuple[str, ...]]:
    """Dimensions along which masks differ, by site name, if all weights of each of these units share a mask.

    Args:
        units: names of `pyro_isingvit.network.units.UNITS`.
    """
    return {site: UNITS[unit].dims for unit in units for site in UNITS[unit].owns}


VIT_LEVELS: Mapping[str, tuple[str, ...]] = levels_of("patch", "head", "hidden", "classifier_hidden")
"""Masks of whole heads, of hidden units, and of features of a patch."""

UNIT_LEVELS: Mapping[str, tuple[str, ...]] = levels_of("patch", "query_key", "value", "hidden", "classifier_hidden")
"""Like `VIT_LEVELS`, with masks of single units of heads in place of whole heads; docs/pruning.md compares them."""


def checked_levels(sites: Sequence[WeightSite], levels: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The dimensions along which masks differ, by site name.

    Raises:
        InputError: if a site or a dimension is unknown.
    """
    table = by_name(sites)
    for name, dims in levels.items():
        if name not in table:
            raise InputError(
                f"levels: no site {name!r}; there are {list(table)}. A network that adapt has made has its own levels, "
                "network.unit_levels"
            )
        if not set(dims) <= set(table[name].dims):
            raise InputError(f"levels={dims} of {name}: must be among its dims {table[name].dims}")
    return {name: tuple(dims) for name, dims in levels.items()}


def shared_shape(site: WeightSite, dims: tuple[str, ...]) -> list[int]:
    """Shape of the masks of a site that differ along these dimensions only."""
    return [n if d in dims else 1 for n, d in zip(site.shape, site.dims, strict=True)]


class StructuredSpikeSlab(IsingSpikeSlab):
    """`IsingSpikeSlab` with one mask for all weights of a role at a head, a hidden unit, or a patch feature.

    The masks of roles that share a head or unit are coupled, so that they tend to be kept or dropped together.

    Args:
        sites: the network's `weight_sites()`.
        levels: the dimensions along which masks differ, by site name; sites that are not named have a mask for each
            weight. A network that `adapt` has made has its own, ``network.unit_levels``.
        couplings: the graph of couplings of the masks of all weights, see `IsingSpikeSlab`, of which those remain at
            units along which the masks of both sites differ.
        options: further arguments of `IsingSpikeSlab`.

    Raises:
        InputError: if a site or a dimension is unknown, or ``inclusion`` differs among weights that share a mask.

    Example: whole heads, but single weights elsewhere.

        >>> prior = StructuredSpikeSlab(sites, levels=levels_of("head"))  # doctest: +SKIP
    """

    def __init__(
        self,
        sites: Sequence[WeightSite],
        levels: Mapping[str, tuple[str, ...]] = VIT_LEVELS,
        couplings: CouplingGraph | None = None,
        **options: Any,
    ) -> None:
        given = checked_levels(sites, levels)
        self.levels = {site.name: given.get(site.name, tuple(site.dims)) for site in sites}
        every = vit_graph(sites) if couplings is None else couplings
        graph = CouplingGraph([self._grouped(site) for site in sites], self._shared(every.couplings))
        super().__init__(sites, couplings=graph, **options)

    def mask(self, site: WeightSite) -> TorchDistributionMixin | None:
        shape = shared_shape(site, self.levels[site.name])
        return StraightThroughBernoulli(logits=self._log_odds(site), event_dim=len(shape), shape=shape)

    def at_units(self, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        shared = {
            name: [i for i, d in enumerate(site.dims) if d not in self.levels[name]]
            for name, site in self.sites.items()
        }
        # Along a shared dimension, masks have one entry, and squared weights as many as the site.
        return {name: value.sum(shared[name]) if shared[name] else value for name, value in masks.items()}

    def field(self, name: str) -> Tensor:
        log_odds, site = self._log_odds(self.sites[name]), self.sites[name]
        if not log_odds.dim():
            return log_odds
        differing = [d for n, d in zip(log_odds.shape, site.dims, strict=True) if n > 1 and d not in self.levels[name]]
        if differing:
            raise InputError(f"inclusion of {name} differs along {differing}, where its weights share a mask")
        return log_odds.squeeze([i for i, d in enumerate(site.dims) if d not in self.levels[name]])

    def _grouped(self, site: WeightSite) -> WeightSite:
        """The site without the dimensions along which weights share a mask."""
        kept = [(n, d) for n, d in zip(site.shape, site.dims, strict=True) if d in self.levels[site.name]]
        shape, dims = tuple(n for n, _ in kept), tuple(d for _, d in kept)
        return replace(
            site,
            shape=shape,
            dims=dims,
            reads=tuple(d for d in site.reads if d in dims),
            writes=tuple(d for d in site.writes if d in dims),
        )

    def _shared(self, every: Iterable[Coupling]) -> Iterator[Coupling]:
        """Couplings at the units along which the masks of both sites differ."""
        for coupling in every:
            there = coupling.second_units or coupling.units
            differ = self.levels[coupling.first], self.levels[coupling.second]
            kept = [
                (here, other)
                for here, other in zip(coupling.units, there, strict=True)
                if here in differ[0] and other in differ[1]
            ]
            units, others = (tuple(names) for names in zip(*kept, strict=True)) if kept else ((), ())
            if set(units) - {LAYER}:
                yield replace(coupling, units=units, second_units=None if others == units else others)
