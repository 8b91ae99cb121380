"""Adapter to ArviZ, which hides the differences between its versions 0.23 and 1.x."""

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
    """Import ArviZ without its warnings about future versions.

    Its cache goes to a temporary folder if XDG_CACHE_HOME is not set and the home folder cannot be written to.
    """
    if "XDG_CACHE_HOME" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def inference_data(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> Any:
    """Combine one dataset for each group into an `arviz.InferenceData` (0.23) or an `xarray.DataTree` (1.x).

    Args:
        groups: datasets by the name of their group.
        attrs: attributes, which the whole and each group get.
    """
    named = {name: data.assign_attrs(attrs) for name, data in groups.items()}
    if _new():
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **named})
    return arviz().InferenceData(attrs=dict(attrs), **named)


def write_netcdf(data: Any, path: str | Path) -> None:
    """Write the result of `to_inference_data` to a compressed netCDF file.

    Args:
        data: from `to_inference_data`.
        path: path of the new file.

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
    """Read a netCDF file that `write_netcdf` wrote.

    Args:
        path: path of the file.

    Returns:
        An `arviz.InferenceData` (ArviZ 0.23) or an `xarray.DataTree` (1.x).

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
        log_weights: logarithms of the importance weights, (..., draws), up to a constant.

    Returns:
        The smoothed log weights, (..., draws), normalised over the draws; and the Pareto shape k of their tail, (...),
        which is infinite where the tail is too heavy or too short to be fitted.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a tail that overflows has an infinite k
        if _new():
            rows = [_smoothed(row) for row in log_weights.reshape(-1, log_weights.shape[-1])]
            smoothed = np.reshape([row for row, _ in rows], log_weights.shape)
            smoothed = smoothed - np.logaddexp.reduce(smoothed, axis=-1, keepdims=True)
            k = np.reshape([shape for _, shape in rows], log_weights.shape[:-1])
        else:
            smoothed, k = arviz().psislw(log_weights)
    return np.asarray(smoothed), np.where(np.isnan(k), np.inf, k)  # 1.x returns NaN where the tail is a single draw


def _smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights and k of one row, by ArviZ 1.x."""
    from arviz_stats.base import array_stats

    try:
        smoothed, k = array_stats.psislw(-log_weights)  # it expects log-likelihoods, which it negates
    except ValueError:  # it refuses a tail of equal weights
        return log_weights, np.inf
    return np.asarray(smoothed), float(k)


def _new() -> bool:
    return int(version("arviz").split(".")[0]) >= 1
