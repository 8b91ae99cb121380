"""The one place that speaks to ArviZ, whose 0.23 and 1.x differ."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError


def arviz() -> Any:
    """ArviZ, imported without its announcements, and with a cache folder that can be made."""
    if "XDG_CACHE_HOME" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def inference_data(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> Any:
    """Datasets by group to `arviz.InferenceData` (0.23) or `xarray.DataTree` (1.x); each group gets the attributes."""
    named = {name: data.assign_attrs(attrs) for name, data in groups.items()}
    if _new():
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **named})
    return arviz().InferenceData(attrs=dict(attrs), **named)


def write_netcdf(data: Any, path: str | Path) -> None:
    """Write what `inference_data` made, compressed.

    Raises:
        InputError: if the file exists.
    """
    if Path(path).exists():
        raise InputError(f"path={str(path)!r} exists: choose another or remove it")
    if _new():
        packed = {
            f"/{name}": {variable: {"zlib": True} for variable in group.data_vars} for name, group in data.items()
        }
        data.to_netcdf(path, engine="h5netcdf", encoding=packed)
    else:
        data.to_netcdf(str(path), engine="h5netcdf")


def read_netcdf(path: str | Path) -> Any:
    """Read what `write_netcdf` wrote.

    Raises:
        InputError: if there is no such file.
    """
    if not Path(path).is_file():
        raise InputError(f"path={str(path)!r}: no such file")
    if _new():
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    return arviz().from_netcdf(str(path), engine="h5netcdf")


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed importance sampling over the last axis.

    Args:
        log_weights: (..., draws), up to a constant.

    Returns:
        Smoothed log weights, normalised over the draws; and the shape k of the tail, (...).
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a tail so heavy that it overflows has an infinite k
        if _new():
            from arviz_stats.base import array_stats

            smoothed, k = array_stats.psislw(-log_weights, axis=-1)  # it wants log-likelihoods, and turns them round
            smoothed = smoothed - np.logaddexp.reduce(smoothed, axis=-1, keepdims=True)
        else:
            smoothed, k = arviz().psislw(log_weights)
    return np.asarray(smoothed), np.where(np.isnan(k), np.inf, k)  # 1.x has NaN where the tail is one draw


def _new() -> bool:
    return int(version("arviz").split(".")[0]) >= 1
