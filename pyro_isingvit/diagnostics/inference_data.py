"""The one place that speaks to ArviZ, whose 0.23 and 1.x differ."""

import os
import tempfile
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ..data import Images
from ..errors import InputError
from ..predict import evaluating, seeded
from ..result import FitResult


def to_inference_data(result: FitResult, data: Images | None = None, draws: int = 100, seed: int = 0) -> Any:
    """Posterior draws of all masks, and the log-likelihood of some data, for ArviZ.

    The draws are independent draws from the guide, not a Markov chain: R-hat and effective sample size
    do not apply to them.

    Args:
        result: a fit of a guide with masks.
        data: labelled images; adds the groups ``log_likelihood`` and ``observed_data``.
        draws: number of draws, in one chain.
        seed: of the draws.

    Returns:
        ArviZ's `InferenceData` (0.23) or xarray's `DataTree` (1.x). Group ``posterior`` holds ``<site>.mask``
        as booleans with the site's dimensions as coordinates.

    Raises:
        InputError: if the guide has no masks, or draws is not positive.
    """
    model, guide = result.model, result.guide
    if not guide.mask_shapes:
        raise InputError(f"guide={type(guide).__name__} has no masks to show")
    if draws < 1:
        raise InputError(f"draws={draws}: need at least one")
    masks: dict[str, list[np.ndarray]] = {site.mask_name: [] for site in model.sites if site.name in guide.mask_shapes}
    log_likelihood: list[Tensor] = []
    device = next(guide.parameters()).device
    with evaluating(model, guide), seeded(device, seed):
        for _ in range(draws):
            trace = poutine.trace(guide).get_trace()
            for site in model.sites:
                if site.mask_name in masks:
                    fixed = model.fixed_masks
                    mask = trace.nodes[site.mask_name]["value"] if fixed is None else fixed[site.name]
                    masks[site.mask_name].append(mask.bool().cpu().numpy())
            if data is not None:
                weights = poutine.replay(model.draw_weights, trace=trace)()
                log_probs = [
                    model.logits(batch.to(device), weights).log_softmax(-1).cpu() for batch in data.images.split(500)
                ]
                log_likelihood.append(torch.cat(log_probs).gather(-1, data.labels.cpu().unsqueeze(-1)).squeeze(-1))
    dims, posterior = {}, {}
    for site in model.sites:
        if site.mask_name in masks:
            shape = guide.mask_shapes[site.name]
            whole = [i for i, (m, s) in enumerate(zip(shape, site.shape, strict=True)) if m == s]
            dims[site.mask_name] = [site.dims[i] for i in whole]
            kept = tuple(shape[i] for i in whole)
            posterior[site.mask_name] = np.stack(masks[site.mask_name]).reshape(1, draws, *kept)
    groups = {"posterior": posterior}
    if data is not None:
        groups["log_likelihood"] = {"label": torch.stack(log_likelihood).unsqueeze(0).numpy()}
        groups["observed_data"] = {"label": data.labels.cpu().numpy()}
        dims["label"] = ["image"]
    attrs = {
        "inference_library": "pyro_isingvit",
        "inference_library_version": version("pyro-isingvit"),
        "draws_are": "independent draws from a variational guide, not a Markov chain",
        "guide": type(guide).__name__,
        "prior": type(model.prior).__name__,
        "temperature": result.temperature,
    }
    return _from_dict(groups, dims, attrs)


def _from_dict(groups: dict[str, dict[str, np.ndarray]], dims: dict[str, list[str]], attrs: dict[str, Any]) -> Any:
    az = _arviz()
    if int(version("arviz").split(".")[0]) >= 1:
        return az.from_dict(groups, dims=dims, attrs={"/": attrs} | dict.fromkeys(groups, attrs))
    return az.from_dict(**groups, dims=dims, attrs=attrs)


def _arviz() -> Any:
    """ArviZ, imported without its announcements, and with a cache folder that can be made."""
    if "XDG_CACHE_HOME" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz
