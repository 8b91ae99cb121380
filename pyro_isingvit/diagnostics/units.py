"""Posterior probability that a unit, a head or a block is alive."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..errors import InputError
from ..network import WeightSite
from ..network.units import UNITS, is_complete
from ..posterior import DRAWS, Posterior


def unit_inclusion(posterior: Posterior, unit: str = "head", draws: int = DRAWS, seed: int = 0) -> xr.DataArray:
    """Posterior probability that each unit of a kind is alive.

    A unit is alive if each site that leads into it or out of it keeps at least one of the unit's weights. A block is
    alive if one of its units is. The probability is an exact product over the masks where they are independent under
    the guide. Otherwise, and where the units of a block share some of their masks, it is the frequency over draws.

    Args:
        posterior: a posterior with masks.
        unit: a name of `pyro_isingvit.network.units.UNITS`.
        draws, seed: number and seed of the draws of the masks, for use where there is no closed form.

    Returns:
        Probabilities over the dimensions of the unit.

    Raises:
        InputError: if the network has no such unit.
    """
    alive = -torch.expm1(log_dead(posterior, unit, draws, seed))
    dims = UNITS[unit].dims
    coords = {dim: np.arange(size) for dim, size in zip(dims, alive.shape, strict=True)}
    return xr.DataArray(alive.numpy(), coords, dims, name=f"P({unit} is alive)")


def log_dead(posterior: Posterior, unit: str, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """Log-probability that each unit of a kind is not alive, in double precision; see `unit_inclusion`.

    It still ranks units that are alive almost surely. Where it is estimated from draws, a unit that is alive in all of
    them gets its probability under independent masks, but at most 1 / (2 * draws).
    """
    sites = {site.name: site for site in posterior.model.sites}
    _check_unit(unit, sites)
    inside = posterior.inclusion_probabilities()
    product, exact = _product_log_dead(inside, sites, unit)
    product = product.expand(_unit_shape(sites, unit))
    if exact and len(posterior.guides) == 1 and posterior.guide.independent_masks:
        return product
    each = [alive_units(posterior, unit, masks).double() for masks in posterior.mask_draws(draws, seed)]
    alive = torch.stack(each).mean(0)
    return torch.where(alive < 1, torch.log1p(-alive), product.clamp_max(-math.log(2 * draws)))


def _product_log_dead(inside: dict[str, Tensor], sites: dict[str, WeightSite], unit: str) -> tuple[Tensor, bool]:
    """Compute `log_dead` from inclusion probabilities, as if masks were independent.

    Returns:
        The log-probabilities, with size 1 along the dimensions where units share all of their masks; and whether they
        are exact for independent masks. They are not for a block whose units share only some of their masks.
    """
    known = UNITS[unit]
    if not known.sites:
        parts = [_product_log_dead(inside, sites, part)[0].flatten(len(known.dims)).sum(-1) for part in known.parts]
        total = torch.stack(torch.broadcast_tensors(*parts)).sum(0)
        return total, all(_share_alike(inside, sites, part) for part in known.parts)
    log_alive = torch.zeros([1] * len(known.dims), dtype=torch.float64)
    for site in known.sites:
        if site in inside:
            log_alive = log_alive + _log1mexp(_log_out(inside[site], sites[site], known.dims))
    return _log1mexp(log_alive), True


def _share_alike(inside: dict[str, Tensor], sites: dict[str, WeightSite], unit: str) -> bool:
    """Whether all sites of a unit have masks that are shared along the same dimensions of the unit."""
    dims, names = UNITS[unit].dims, UNITS[unit].sites
    shapes = {tuple(_log_out(inside[name], sites[name], dims).shape) if name in inside else None for name in names}
    return len(shapes) == 1 and None not in shapes


def _log_out(probs: Tensor, site: WeightSite, dims: Sequence[str]) -> Tensor:
    """Log-probability that a site keeps no weight of a unit, in doubles since it sums thousands of small terms."""
    return _over_units(site, torch.log1p(-probs.double().cpu()), dims, "sum")


def _log1mexp(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)) for log_p <= 0, without cancellation near 0 or for very negative values."""
    near_one = log_p > -math.log(2)
    small = torch.where(near_one, log_p, -math.log(2))
    large = torch.where(near_one, -math.log(2), log_p)
    return torch.where(near_one, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def alive_units(posterior: Posterior, unit: str, masks: dict[str, Tensor] | None = None) -> Tensor:
    """Which units of a kind are alive under given masks; see `unit_inclusion`.

    Args:
        posterior: the posterior of the network.
        unit: a name of `pyro_isingvit.network.units.UNITS`.
        masks: masks by site name; those of the median-probability model if None.

    Returns:
        Booleans over the dimensions of the unit.
    """
    masks = posterior.median_masks() if masks is None else masks
    sites = {site.name: site for site in posterior.model.sites}
    _check_unit(unit, sites)
    known = UNITS[unit]
    if not known.sites:
        each = [alive_units(posterior, part, masks).flatten(len(known.dims)).any(-1) for part in known.parts]
        return torch.stack(each).any(0)
    alive = torch.ones(_unit_shape(sites, unit), dtype=torch.bool)
    for name in known.sites:
        if name in masks:
            alive = alive & (_over_units(sites[name], masks[name].cpu(), known.dims, "amax") > 0)
    return alive


def _unit_shape(sites: dict[str, WeightSite], unit: str) -> list[int]:
    known = UNITS[unit]
    site = sites[(known.sites or UNITS[known.parts[0]].sites)[0]]
    return [site.shape[site.dims.index(dim)] for dim in UNITS[unit].dims]


def _over_units(site: WeightSite, values: Tensor, dims: Sequence[str], reduce: Literal["sum", "amax"]) -> Tensor:
    """Reduce masks over all dimensions other than ``dims``; the result broadcasts to the shape of the units."""
    axes = [i for i, d in enumerate(site.dims) if d not in dims]
    kept = getattr(values, reduce)(axes) if axes else values
    order = [d for d in site.dims if d in dims]
    return kept.permute([order.index(d) for d in dims])


def _check_unit(unit: str, sites: Mapping[str, WeightSite]) -> None:
    possible = [name for name, known in UNITS.items() if is_complete(known, sites)]
    if unit not in possible:
        raise InputError(f"unit={unit!r}: choose one of {possible}")
