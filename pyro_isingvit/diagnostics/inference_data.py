"""A posterior as ArviZ wants it."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ..data import Images
from ..draws import check_draws, draw_labels, prior_draws
from ..errors import InputError
from ..inference.result import FitResult
from ..logit_scale import scale_logits
from ..models import IsingViT
from ..network import LAYER, WeightSite
from ..posterior import Posterior
from .arviz_adapter import inference_data

PACKAGES = ("pyro-isingvit", "torch", "pyro-ppl", "arviz", "xarray")


def to_inference_data(
    posterior: Posterior,
    data: Images | None = None,
    draws: int = 100,
    weights: Sequence[str] = (),
    predictions: Tensor | None = None,
    prior: int = 0,
    seed: int = 0,
    log: FitResult | None = None,
) -> Any:
    """Draws from a posterior, and what they say of data, for ArviZ.

    The draws are independent draws from the guide, not a Markov chain: what ArviZ computes about chains
    (R-hat, effective sample size, `plot_trace`, `plot_rank`, `plot_autocorr`, energy) does not apply to them.

    Args:
        posterior: one with masks.
        data: labelled images, for ``log_likelihood``, ``posterior_predictive`` and ``observed_data``.
        draws: number of draws, in one chain.
        weights: sites whose weights to keep too, e.g. ``["classifier.out"]``.
        predictions: images (n, channels, height, width) without labels, for ``predictions``.
        prior: number of draws for ``prior`` and, with data, ``prior_predictive``: from the prior with its
            interaction, by Gibbs sampling where it is an Ising one.
        seed: of the draws.
        log: of the fit, for its history and configuration.

    Returns:
        ArviZ's `InferenceData` (0.23) or xarray's `DataTree` (1.x). Its groups:

        * ``posterior``: ``<site>.mask`` as booleans with the site's dimensions as coordinates,
          ``<site>.weight`` of the chosen ones, and ``density``, the share of weights kept of each ``part``
          (a role, or a block of one);
        * ``sample_stats``: ``log_ratio``, log p - log q of each draw up to a constant, without the
          likelihood; and with ``log`` also ``elbo``, the history of the tempered evidence bound in nats over ``step``;
        * ``log_likelihood``, ``posterior_predictive``, ``observed_data``: ``label``, over ``image``;
          the likelihood is that of training, not tempered; labels are drawn with the posterior's ``logit_scale``;
        * ``predictions``: ``label`` over ``new_image``;
        * ``prior``, ``prior_predictive``: as their posterior counterparts.

    Raises:
        InputError: if the guide has no masks, or an argument is out of range.
        NotImplementedError: if prior draws are asked of a prior that has none, see `Prior.draw_masks`.
    """
    _check(posterior, draws, weights, prior)
    labels = torch.Generator().manual_seed(seed)
    groups = _of_posterior(posterior, data, draws, weights, predictions, seed, labels)
    if log is not None:
        groups["sample_stats"] = _with_elbo(groups["sample_stats"], log.history, posterior.model.num_data or 1)
    groups |= _of_prior(posterior.model, data, prior, seed, labels) if prior else {}
    return inference_data(groups, _attributes(posterior, log))


def _of_posterior(
    posterior: Posterior,
    data: Images | None,
    draws: int,
    weights: Sequence[str],
    predictions: Tensor | None,
    seed: int,
    labels: torch.Generator,
) -> dict[str, xr.Dataset]:
    """The groups that are made of draws from the guide, by name; see `to_inference_data`."""
    scale = posterior.logit_scale
    kept = _Draws(posterior.model.sites, weights)
    log_ratio: list[float] = []
    log_likelihood: list[Tensor] = []
    replicated: list[Tensor] = []
    predicted: list[Tensor] = []
    for draw in posterior.draws(draws, seed):
        kept.add(draw.masks, draw.weights)
        log_ratio.append(draw.log_ratio)
        if data is not None:
            each = draw.log_probs(data.images)
            log_likelihood.append(each.gather(-1, data.labels.cpu().unsqueeze(-1)).squeeze(-1))
            replicated.append(draw_labels(scale_logits(each, scale), labels))
        if predictions is not None:
            predicted.append(draw_labels(scale_logits(draw.log_probs(predictions), scale), labels))
    ratios = xr.Dataset({"log_ratio": (("chain", "draw"), np.asarray([log_ratio]))}, _chain(len(log_ratio)))
    groups = {"posterior": kept.dataset(), "sample_stats": ratios}
    if data is not None:
        groups["log_likelihood"] = _labels(log_likelihood, "image")
        groups["posterior_predictive"] = _labels(replicated, "image")
        groups["observed_data"] = xr.Dataset(
            {"label": ("image", data.labels.cpu().numpy())}, {"image": np.arange(len(data))}
        )
    if predictions is not None:
        groups["predictions"] = _labels(predicted, "new_image")
    return groups


def _of_prior(
    model: IsingViT, data: Images | None, draws: int, seed: int, labels: torch.Generator
) -> dict[str, xr.Dataset]:
    """Likewise, of draws from the prior."""
    before = _Draws(model.sites, ())
    replicated: list[Tensor] = []
    for draw in prior_draws(model, draws, seed):
        before.add(draw.masks, draw.weights)
        if data is not None:
            replicated.append(draw_labels(draw.log_probs(data.images), labels))
    groups = {"prior": before.dataset()}
    if data is not None:
        groups["prior_predictive"] = _labels(replicated, "image")
    return groups


def _check(posterior: Posterior, draws: int, weights: Sequence[str], prior: int) -> None:
    sites = [site.name for site in posterior.model.sites]
    if not posterior.guides[0].mask_shapes:
        raise InputError(f"posterior: its guide, {type(posterior.guides[0]).__name__}, has no masks to show")
    check_draws(draws)
    if prior < 0:
        raise InputError(f"prior={prior}: give a number of draws, or 0 for none")
    unknown = sorted(set(weights) - set(sites))
    if unknown:
        raise InputError(f"weights={list(weights)}: no site {unknown}; there are {sites}")


def _with_elbo(stats: xr.Dataset, history: pd.DataFrame, num_data: int) -> xr.Dataset:
    elbo = -history["loss"] * num_data / history["temperature"]
    stats = stats.assign(elbo=("step", elbo.to_numpy()), phase=("step", history["phase"].to_numpy(str)))
    return stats.assign_coords(step=history["step"].to_numpy())


def _attributes(posterior: Posterior, log: FitResult | None) -> dict[str, Any]:
    attributes = {
        "inference_library": "pyro_isingvit",
        "inference_library_version": version("pyro-isingvit"),
        "versions": json.dumps({name: version(name) for name in PACKAGES}),
        "draws_are": "independent draws from a variational guide, not a Markov chain",
        "guide": type(posterior.guides[0]).__name__,
        "prior": type(posterior.model.prior).__name__,
        "temperature": posterior.model.temperature,
        "logit_scale": posterior.logit_scale,
    }
    return attributes if log is None else attributes | {"fit": json.dumps(dict(log.config))}


def part_names(site: WeightSite) -> list[str]:
    """The site's name for each block of it, ``encoder.up[0]``; itself where it has no blocks."""
    if LAYER not in site.dims:
        return [site.name]
    return [f"{site.name}[{layer}]" for layer in range(site.shape[site.axis(LAYER)])]


class _Draws:
    """Masks and weights of many draws, kept small: masks as booleans, without dimensions that share one."""

    def __init__(self, sites: Sequence[WeightSite], weights: Sequence[str]) -> None:
        self.sites, self.chosen = {site.name: site for site in sites}, weights
        self.masks: dict[str, list[np.ndarray]] = {}
        self.weights: dict[str, list[np.ndarray]] = {}
        self.density: list[list[float]] = []
        self.parts: list[str] = []

    def add(self, masks: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        shares: list[float] = []
        for name, mask in masks.items():
            site = self.sites[name]
            self.masks.setdefault(name, []).append(mask.bool().cpu().numpy())
            kept = mask.mean([i for i, d in enumerate(site.dims) if d != LAYER])
            shares += kept.expand(len(part_names(site))).tolist() if kept.dim() else [float(kept)]
        self.parts = [part for name in masks for part in part_names(self.sites[name])]
        self.density.append(shares)
        for name in self.chosen:
            self.weights.setdefault(name, []).append(weights[name].cpu().numpy())

    def dataset(self) -> xr.Dataset:
        variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        coords: dict[str, Any] = {**_chain(len(self.density)), "part": self.parts}
        for name, drawn in self.masks.items():
            site = self.sites[name]
            whole = [i for i, (m, s) in enumerate(zip(drawn[0].shape, site.shape, strict=True)) if m == s]
            dims = tuple(site.dims[i] for i in whole)
            shape = tuple(site.shape[i] for i in whole)
            variables[site.mask_name] = ("chain", "draw", *dims), np.stack(drawn).reshape(1, len(drawn), *shape)
            coords |= {dim: np.arange(size) for dim, size in zip(dims, shape, strict=True)}
        for name, values in self.weights.items():
            site = self.sites[name]
            variables[site.weight_name] = ("chain", "draw", *site.dims), np.stack(values)[None]
            coords |= {dim: np.arange(size) for dim, size in zip(site.dims, site.shape, strict=True)}
        variables["density"] = ("chain", "draw", "part"), np.asarray([self.density])
        return xr.Dataset(variables, coords)


def _chain(draws: int) -> dict[str, Any]:
    return {"chain": [0], "draw": np.arange(draws)}


def _labels(each: list[Tensor], over: str) -> xr.Dataset:
    values = torch.stack(each).unsqueeze(0).numpy()
    coords = {**_chain(len(each)), over: np.arange(values.shape[-1])}
    return xr.Dataset({"label": (("chain", "draw", over), values)}, coords)
