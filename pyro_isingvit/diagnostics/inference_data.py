"""Conversion of a posterior to the data structures of ArviZ."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ..data import Images
from ..draws import Draw, check_draws, prior_draws
from ..errors import InputError
from ..inference.inputs import check_part
from ..inference.result import FitResult
from ..models import IsingViT
from ..network import LAYER, WeightSite
from ..posterior import Posterior
from .arviz_adapter import inference_data
from .labels import labels_given

LABEL_DIMS: Mapping[str, tuple[str, ...]] = {"classes": (), "numbers": ("number",), "several labels": ("class",)}
"""Dimensions of the labels of an image, by their kind. Those of several labels are the rows of the last layer."""

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
          share a mask), ``<site>.weight`` of the sites in ``weights``, latent variables of the prior's own by their
          names, and ``density``, the share of the weights that is kept in each ``part`` (a block of a site, or a site
          without blocks);
        * ``sample_stats``: ``log_ratio``, log p - log q of each draw in nats, up to a constant and without the
          likelihood; with ``log`` also ``elbo``, the ELBO of the power posterior in nats (of a mixture, by chain), and
          ``phase``, over ``step``;
        * ``log_likelihood``, ``posterior_predictive``, ``observed_data``: ``label`` over ``image``, and, except in the
          log-likelihood, over the ``number`` of several numbers, or the ``class`` of several labels of an image, which
          are booleans. The log-likelihood is that of all labels of an image, in nats, neither tempered nor scaled, and
          each image counts once; classes are drawn with the logit scale of the posterior. Of held-out images, the
          log-mean-exp over draws of the log-likelihood is the log predictive density. ArviZ's ``loo``, ``waic`` and
          ``compare`` are for images that a posterior was fitted to;
        * ``predictions``: ``label`` like ``posterior_predictive``, over ``new_image``;
        * ``prior``, ``prior_predictive``: the same variables as in their posterior counterparts, without weights.

    Raises:
        InputError: if the guide has no masks, an argument is out of range, or labels are of another kind or number than
            in the fit.
        NotImplementedError: if ``prior`` is positive and the prior cannot draw from its interaction, see
            `Prior.draw_masks`.
    """
    _check(posterior, draws, weights, prior)
    if data is not None:
        check_part(posterior.model, "data", data)
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
    scale, own = posterior.logit_scale, LABEL_DIMS[posterior.model.likelihood.kind]
    kept = _Draws(posterior.model.sites, weights)
    log_ratio: list[float] = []
    log_likelihood: list[Tensor] = []
    replicated: list[Tensor] = []
    predicted: list[Tensor] = []
    for draw in posterior.draws(draws, seed):
        kept.add(draw)
        log_ratio.append(draw.log_ratio)
        if data is not None:
            each = labels_given(draw, data.images)
            log_likelihood.append(each.log_prob(data.labels))
            replicated.append(each.at(scale).sample(labels))
        if predictions is not None:
            predicted.append(labels_given(draw, predictions, scale).sample(labels))
    ratios = xr.Dataset({"log_ratio": (("chain", "draw"), np.asarray([log_ratio]))}, _chain(len(log_ratio)))
    groups = {"posterior": kept.dataset(), "sample_stats": ratios}
    if data is not None:
        groups["log_likelihood"] = _of_draws(log_likelihood, ("image",))
        groups["posterior_predictive"] = _of_draws(replicated, ("image", *own))
        groups["observed_data"] = _of_draws([data.labels.cpu()], ("image", *own)).isel(chain=0, draw=0, drop=True)
    if predictions is not None:
        groups["predictions"] = _of_draws(predicted, ("new_image", *own))
    return groups


def _of_prior(
    model: IsingViT, data: Images | None, draws: int, seed: int, labels: torch.Generator
) -> dict[str, xr.Dataset]:
    """The groups that are made of draws from the prior, by name; see `to_inference_data`."""
    before = _Draws(model.sites, ())
    replicated: list[Tensor] = []
    for draw in prior_draws(model, draws, seed):
        before.add(draw)
        if data is not None:
            replicated.append(labels_given(draw, data.images).sample(labels))
    groups = {"prior": before.dataset()}
    if data is not None:
        groups["prior_predictive"] = _of_draws(replicated, ("image", *LABEL_DIMS[model.likelihood.kind]))
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
        "likelihood": type(posterior.model.likelihood).__name__,
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
    """What many draws consist of; masks as booleans, without the dimensions along which they are shared."""

    def __init__(self, sites: Sequence[WeightSite], weights: Sequence[str]) -> None:
        self.sites, self.chosen = {site.name: site for site in sites}, weights
        self.masks: dict[str, list[np.ndarray]] = {}
        self.weights: dict[str, list[np.ndarray]] = {}
        self.latents: dict[str, list[np.ndarray]] = {}
        self.density: list[list[float]] = []
        self.parts: list[str] = []

    def add(self, draw: Draw) -> None:
        shares: list[float] = []
        for name, mask in draw.masks.items():
            site = self.sites[name]
            self.masks.setdefault(name, []).append(mask.bool().cpu().numpy())
            kept = mask.mean([i for i, d in enumerate(site.dims) if d != LAYER])
            shares += kept.expand(len(part_names(site))).tolist() if kept.dim() else [float(kept)]
        self.parts = [part for name in draw.masks for part in part_names(self.sites[name])]
        self.density.append(shares)
        for name in self.chosen:
            self.weights.setdefault(name, []).append(draw.weights[name].cpu().numpy())
        for name, value in draw.latents.items():
            self.latents.setdefault(name, []).append(value.cpu().numpy())

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
        for name, values in self.latents.items():
            own = tuple(f"{name}.dim{axis}" for axis in range(values[0].ndim))
            variables[name] = ("chain", "draw", *own), np.stack(values)[None]
        variables["density"] = ("chain", "draw", "part"), np.asarray([self.density])
        return xr.Dataset(variables, coords)


def _chain(draws: int) -> dict[str, Any]:
    return {"chain": [0], "draw": np.arange(draws)}


def _of_draws(each: list[Tensor], over: tuple[str, ...]) -> xr.Dataset:
    """``label`` over the dimensions of one draw of it, stacked over draws."""
    values = torch.stack(each).unsqueeze(0).numpy()
    sizes = dict(zip(over, values.shape[2:], strict=True))
    coords = {**_chain(len(each)), **{dim: np.arange(size) for dim, size in sizes.items()}}
    return xr.Dataset({"label": (("chain", "draw", *over), values)}, coords)
