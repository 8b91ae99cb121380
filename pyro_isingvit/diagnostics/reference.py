"""A reference sample: whether its chains agree, and how far an approximate posterior is from it.

References:
    Vehtari, Gelman, Simpson, Carpenter & Burkner, "Rank-Normalization, Folding, and Localization: An Improved R-hat",
    Bayesian Analysis 2021.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ..data import Images
from ..errors import InputError, kind_of
from ..inference.reference import Reference
from ..network import WeightSite
from ..posterior import Posterior
from ..prediction import Prediction
from ..scores import mean_scores
from .arviz_adapter import arviz, inference_data


def reference_data(reference: Reference) -> Any:
    """Convert a reference sample to the data structure of ArviZ; its chains are Markov chains.

    Returns:
        An `arviz.InferenceData` (ArviZ 0.23) or an `xarray.DataTree` (1.x) with the groups ``posterior``:
        ``<site>.mask`` and ``<site>.weight``, and the `quantities` that do not change when hidden units swap places;
        and ``log_likelihood``: ``label`` over ``image``, in nats.
    """
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for site in reference.model.sites:
        if site.name in reference.masks:
            masks = reference.masks[site.name]
            kept = [i for i, (m, s) in enumerate(zip(masks.shape[2:], site.shape, strict=True)) if m == s]
            squeezed = masks.squeeze([2 + i for i in range(len(site.shape)) if i not in kept])
            dims = ("chain", "draw", *(site.dims[i] for i in kept))
            variables[site.mask_name] = dims, squeezed.bool().cpu().numpy()
        variables[site.weight_name] = ("chain", "draw", *site.dims), reference.weights[site.name].cpu().numpy()
    groups = {
        "posterior": xr.Dataset(variables).merge(quantities(reference)),
        "log_likelihood": xr.Dataset({"label": (("chain", "draw", "image"), reference.log_likelihood.cpu().numpy())}),
    }
    return inference_data(groups, {"inference_library": "pyro_isingvit", "sampler": "Gibbs and Hamiltonian moves"})


def quantities(reference: Reference) -> xr.Dataset:
    """Quantities of each draw that are the same when hidden units swap places.

    Returns:
        Over ``chain`` and ``draw``: ``log_likelihood`` of all images, in nats; ``kept``, the share of the weights with
        masks that is kept; and ``inclusion``, over ``feature``: the same of the weights that read an input feature, if
        the first site has masks.
    """
    sizes = {site.name: site.numel for site in reference.model.sites}
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "log_likelihood": (("chain", "draw"), reference.log_likelihood.sum(-1).double().cpu().numpy())
    }
    if reference.masks:
        total = sum(sizes[name] for name in reference.masks)
        kept = sum(masks.flatten(2).double().mean(-1) * sizes[name] for name, masks in reference.masks.items()) / total
        variables["kept"] = ("chain", "draw"), torch.as_tensor(kept).cpu().numpy()
    first = reference.model.sites[0]
    if first.name in reference.masks:
        inside = _by_feature(first, reference.masks[first.name].double()).flatten(2)
        variables["inclusion"] = ("chain", "draw", "feature"), inside.cpu().numpy()
    return xr.Dataset(variables)


def convergence(reference: Reference) -> pd.DataFrame:
    """Whether the chains of a reference sample agree.

    Returns:
        One row for each of the `quantities`, with columns ``quantity``, ``mean``, ``r_hat`` (rank-normalised, missing
        for what never changes; below 1.01 to 1.05 is wanted) and ``ess``, the bulk effective sample size.

    Raises:
        InputError: if there are fewer than two chains, or four draws.
    """
    if not isinstance(reference, Reference):
        raise InputError(f"reference={kind_of(reference)}: give the result of sample_reference(model, train)")
    chains, draws = reference.log_likelihood.shape[:2]
    if chains < 2 or draws < 4:
        raise InputError(f"reference: {chains} chains of {draws} draws; agreement takes at least 2 of 4")
    az, data = arviz(), quantities(reference)
    rows = []
    for name, values in data.items():
        features = [None] if "feature" not in values.dims else list(range(values.sizes["feature"]))
        for feature in features:
            each = values if feature is None else values.isel(feature=feature)
            array = each.to_numpy()
            varies = bool(np.ptp(array) > 0)
            rows.append(
                {
                    "quantity": str(name) if feature is None else f"{name} {feature}",
                    "mean": float(array.mean()),
                    "r_hat": float(az.rhat(array)) if varies else np.nan,
                    "ess": float(az.ess(array)) if varies else np.nan,
                }
            )
    return pd.DataFrame(rows)


def against_reference(
    posterior: Posterior, reference: Reference, images: Images, draws: int = 200, interval: float = 0.9, seed: int = 0
) -> dict[str, float]:
    """How far a posterior is from a reference sample of the same model; predictions are those before calibration.

    Args:
        posterior: an approximation of the same posterior.
        reference: from `pyro_isingvit.inference.reference.sample_reference`.
        images: labelled images, on which predictions are compared.
        draws, seed: number and seed of the draws from ``posterior``.
        interval: mass of the credible intervals.

    Returns:
        ``inclusion``: mean absolute difference of the inclusion probabilities; ``features``: the same after averaging
        over the weights that read an input feature, which hidden units that swap places leave alone (both missing
        without masks); ``variation``: mean total variation distance of the predictive distributions; ``nll`` and
        ``reference_nll``, in nats; ``coverage``: share of the reference's draws of the probabilities of labels that lie
        within the credible interval of ``posterior``; ``interval`` would be right.

    Raises:
        InputError: if the models differ in sites, masks or temperature.
    """
    sites = [(site.name, site.shape) for site in posterior.model.sites]
    if sites != [(site.name, site.shape) for site in reference.model.sites]:
        raise InputError("reference: of a model with other sites than the posterior")
    own, other = (
        {name: tuple(p.shape) for name, p in each.inclusion_probabilities().items()} for each in (posterior, reference)
    )
    if own != other:
        raise InputError(f"reference: masks of shapes {other}, and the posterior has {own}")
    if posterior.model.temperature != reference.model.temperature:
        raise InputError(
            f"reference: at temperature {reference.model.temperature:g}, and the posterior is at "
            f"{posterior.model.temperature:g}; set model.temperature before sample_reference"
        )
    found: dict[str, float] = {"inclusion": np.nan, "features": np.nan}
    exact, fitted = reference.inclusion_probabilities(), posterior.inclusion_probabilities()
    if exact:
        gaps = torch.cat([(exact[name].cpu() - fitted[name].cpu()).abs().flatten() for name in exact])
        found["inclusion"] = float(gaps.mean())
        first = posterior.model.sites[0]
        if first.name in exact:
            gap = exact[first.name].cpu() - fitted[first.name].cpu()
            found["features"] = float(_by_feature(first, gap).abs().mean())
    predicted = posterior.predict_at((1.0,), images.images, draws, interval, seed)[0]
    exactly = reference.predict(images.images, interval)
    labels = images.labels.cpu()
    found["variation"] = float((predicted.probs - exactly.probs).abs().sum(-1).mean()) / 2
    found["nll"] = mean_scores(predicted.probs, labels)["nll"]
    found["reference_nll"] = mean_scores(exactly.probs, labels)["nll"]
    found["coverage"] = _coverage(predicted, reference, images)
    return found


def _by_feature(site: WeightSite, values: Tensor) -> Tensor:
    """Means over the weights that read an input feature, of values (..., *mask shape) of a site."""
    over = [axis - len(site.dims) for axis, dim in enumerate(site.dims) if dim not in site.reads]
    return values.mean(over) if over else values


def _coverage(own: Prediction, reference: Reference, images: Images) -> float:
    """Share of the reference's draws of each label's probability that lie within the interval of a prediction."""
    labels = images.labels.cpu()
    place = torch.arange(len(labels))
    lower, upper = own.lower[place, labels], own.upper[place, labels]
    inside = [
        ((p := draw.log_probs(images.images)[place, labels].exp()) >= lower) & (p <= upper)
        for draw in reference.draws()
    ]
    return float(torch.stack(inside).double().mean())
