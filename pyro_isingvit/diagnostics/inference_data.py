"""Conversion of a posterior to the data structures of ArviZ."""

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
    """Convert draws from a posterior, and their predictions, to the data structure of ArviZ.

    The draws are independent draws from the guide, not a Markov chain. The diagnostics of ArviZ for Markov chains
    (effective sample size, `plot_trace`, `plot_rank`, `plot_autocorr`, energy) do not apply to them, nor does R-hat,
    except to a mixture: its members are the chains, and R-hat compares them.

    Args:
        posterior: a posterior with masks.
        data: labelled images, for ``log_likelihood``, ``posterior_predictive`` and ``observed_data``.
        draws: number of draws, stored as one chain; of a mixture, the number for each member, and each has a chain.
        weights: names of sites whose weights are stored as well as their masks, e.g. ``["classifier.out"]``.
        predictions: images (n, channels, height, width) without labels, for ``predictions``.
        prior: number of draws for ``prior`` and, with data, ``prior_predictive``. They include the interaction of the
            prior, by Gibbs sampling where it is an Ising factor.
        seed: seed of the draws.
        log: result of the fit, for its history and configuration.

    Returns:
        An `arviz.InferenceData` (ArviZ 0.23) or an `xarray.DataTree` (1.x) with the groups:

        * ``posterior``: ``<site>.mask`` as booleans over the dimensions of the site (without those along which weights
          share a mask), ``<site>.weight`` of the sites in ``weights``, and ``density``, the share of the weights that
          is kept in each ``part`` (a block of a site, or a site without blocks);
        * ``sample_stats``: ``log_ratio``, log p - log q of each draw in nats, up to a constant and without the
          likelihood; with ``log`` also ``elbo``, the ELBO of the power posterior in nats (of a mixture, by chain), and
          ``phase``, over ``step``;
        * ``log_likelihood``, ``posterior_predictive``, ``observed_data``: ``label`` over ``image``. The log-likelihood
          is in nats, neither tempered nor scaled; labels are drawn with the logit scale of the posterior;
        * ``predictions``: ``label`` over ``new_image``;
        * ``prior``, ``prior_predictive``: the same variables as in their posterior counterparts, without weights.

    Raises:
        InputError: if the guide has no masks, or an argument is out of range.
        NotImplementedError: if ``prior`` is positive and the prior cannot draw from its interaction, see
            `Prior.draw_masks`.
    """
    _check(posterior, draws, weights, prior)
    if log is not None and log.history.get("member", pd.Series([0])).nunique() != len(posterior.guides):
        raise InputError("log: of another number of members than the posterior; see FitResult.member")
    labels = torch.Generator().manual_seed(seed)
    every = [
        _of_posterior(member, data, draws, weights, predictions, seed + k, labels)
        for k, member in enumerate(posterior.members)
    ]
    groups = {name: _as_chains([each[name] for each in every]) for name in every[0]}
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
    """The groups that are made of draws from the prior, by name; see `to_inference_data`."""
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


def _as_chains(members: Sequence[xr.Dataset]) -> xr.Dataset:
    """The same group of all members of a mixture, each of them a chain; what was observed is the same for all."""
    if "chain" not in members[0].dims:
        return members[0]
    return xr.concat([each.assign_coords(chain=[k]) for k, each in enumerate(members)], "chain")


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
    if "member" in history:
        rows = history.assign(elbo=elbo).pivot(index="step", columns="member", values="elbo")
        stats, history = stats.assign(elbo=(("chain", "step"), rows.to_numpy().T)), history[history["member"] == 0]
    else:
        stats = stats.assign(elbo=("step", elbo.to_numpy()))
    stats = stats.assign(phase=("step", history["phase"].to_numpy(str)))
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
    """Names of the blocks of a site, e.g. ``encoder.up[0]``, or the name of a site without blocks."""
    if LAYER not in site.dims:
        return [site.name]
    return [f"{site.name}[{layer}]" for layer in range(site.shape[site.axis(LAYER)])]


class _Draws:
    """Masks and weights of many draws; masks as booleans, without the dimensions along which they are shared."""

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
