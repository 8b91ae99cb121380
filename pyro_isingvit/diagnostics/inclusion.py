"""Inclusion probabilities by weight, block and role, the error rates they claim, and their agreement between fits.

References:
    Barbieri & Berger, "Optimal Predictive Model Selection", Annals of Statistics 2004 (median-probability model).
    Newton, Noueiry, Sarkar & Ahlquist, "Detecting Differential Gene Expression with a Semiparametric
    Hierarchical Mixture Method", Biostatistics 2004 (expected false discovery rate).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ..draws import check_draws
from ..errors import InputError, check_fraction
from ..network import LAYER, WeightSite
from ..posterior import DRAWS, Posterior
from .meaning import check_masks, inclusion_meaning

THRESHOLDS = tuple(float(t) for t in np.arange(1, 20) / 20)
"""Thresholds of the inclusion probability, from 0.05 to 0.95."""


def inclusion_dataset(posterior: Posterior, by: Literal["weight", "layer", "role"] = "weight") -> xr.Dataset:
    """Posterior inclusion probabilities as an xarray dataset with named dimensions.

    They are exact where the guide has them in closed form, see `Guide.inclusion_probabilities`.

    Args:
        posterior: a posterior with masks.
        by: ``"weight"`` for the probability of each weight, ``"layer"`` for the mean over each block of a role, or
            ``"role"`` for the mean over a role.

    Returns:
        One variable for each site. By weight, it has the dimensions of the site, without those along which weights
        share a mask; by layer, it has the dimension ``layer`` where the site has blocks; by role, it has none.

    Raises:
        InputError: if the posterior has no masks.
    """
    variables: dict[str, tuple[list[str], np.ndarray]] = {}
    coords: dict[str, np.ndarray] = {}
    inside = _probabilities(posterior)
    for site in posterior.model.sites:
        if site.name in inside:
            probs = inside[site.name].cpu()
            shared = [i for i, (m, s) in enumerate(zip(probs.shape, site.shape, strict=True)) if m != s]
            dims = [d for i, d in enumerate(site.dims) if i not in shared]
            probs = probs.squeeze(shared)
            if by != "weight":
                kept = [d for d in dims if by == "layer" and d == LAYER]
                axes = [i for i, d in enumerate(dims) if d not in kept]
                probs, dims = probs.mean(axes) if axes else probs, kept
            variables[site.name] = dims, probs.numpy()
            coords |= {dim: np.arange(size) for dim, size in zip(dims, probs.shape, strict=True)}
    return xr.Dataset(variables, coords)


def inclusion_table(posterior: Posterior, interval: float = 0.9, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Inclusion probabilities and densities of each site and block, in the order in which the network uses them.

    Args:
        posterior: a posterior with masks.
        interval: mass of the credible intervals, within (0, 1).
        draws, seed: number and seed of the draws of the masks from which the intervals are computed.

    Returns:
        One row for each site and block, with columns ``site``; ``layer``, missing where the site has no blocks;
        ``weights``, how many there are; ``expected``, the mean inclusion probability; ``lower`` and ``upper``, the
        central credible interval of the share of the weights that is kept; ``median``, that share in the
        median-probability model (of a mixture, the mean over those of its members); ``reads_as``, whether inclusion
        there is a ``"probability"`` whose reliability was measured, a ``"score"``, or ``"held"``; see
        `inclusion_meaning`.

    Raises:
        InputError: if the posterior has no masks, ``interval`` is not within (0, 1), or ``draws`` is below 1.
    """
    check_fraction("interval", interval, "0.9")
    check_draws(draws)
    inside = _probabilities(posterior)
    by_member = [member.inclusion_probabilities() for member in posterior.members]
    masked = [site for site in posterior.model.sites if site.name in inside]
    shares: dict[str, list[Tensor]] = {site.name: [] for site in masked}
    for masks in posterior.mask_draws(draws, seed):
        for site in masked:
            shares[site.name].append(_by_block(site, masks[site.name]))
    levels = torch.tensor([(1 - interval) / 2, (1 + interval) / 2])
    meaning = inclusion_meaning(posterior).set_index("site")["reads_as"]
    rows = []
    for order, site in enumerate(masked):
        expected = _by_block(site, inside[site.name])
        median = torch.stack([_by_block(site, (each[site.name] >= 0.5).float()) for each in by_member]).mean(0)
        lower, upper = torch.stack(shares[site.name]).quantile(levels, 0)
        for layer in range(len(expected)):
            rows.append(
                {
                    "site": site.name,
                    "layer": layer if LAYER in site.dims else None,
                    "weights": site.numel // len(expected),
                    "expected": float(expected[layer]),
                    "lower": float(lower[layer]),
                    "upper": float(upper[layer]),
                    "median": float(median[layer]),
                    "reads_as": meaning[site.name],
                    "order": order,
                }
            )
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    # Sites without blocks come before or after all blocks; the sites with blocks are consecutive.
    blocks = table.loc[table["layer"].notna(), "order"]
    first = blocks.min() if len(blocks) else 0
    place = table["order"].where(table["layer"].isna(), first)
    return (
        table.assign(place=place)
        .sort_values(["place", "layer", "order"])
        .drop(columns=["place", "order"])
        .reset_index(drop=True)
    )


def threshold_table(posterior: Posterior, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
    """Density, and the error rates that a fit claims, if weights are kept whose inclusion reaches a threshold.

    For a mixture, the weights are those of all members.

    The claimed rates follow from the inclusion probabilities. They are error rates only where `inclusion_meaning` says
    that these are probabilities; where it says that they are scores, true rates can be ten times as high.

    Args:
        posterior: a posterior with masks.
        thresholds: within [0, 1]; 0.5 gives the median-probability model.

    Returns:
        One row for each threshold, with columns ``threshold``; ``density``, the share of the weights with masks whose
        inclusion probability is at least the threshold; ``claimed_false_discovery_rate``, the expected share of these
        weights whose mask is 0 under the posterior (0 if no weight is kept); ``claimed_false_omission_rate``, the
        expected share of the other weights whose mask is 1 (0 if all weights are kept).

    Raises:
        InputError: if the posterior has no masks, or a threshold is out of range.
    """
    every = [_probabilities(member) for member in posterior.members]
    sites = [site for site in posterior.model.sites if site.name in every[0]]
    probs = torch.cat([own[s.name].cpu().double().expand(s.shape).flatten() for own in every for s in sites])
    rows = []
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise InputError(f"thresholds={threshold}: must lie within [0, 1]")
        kept = probs >= threshold
        rows.append(
            {
                "threshold": threshold,
                "density": float(kept.double().mean()),
                "claimed_false_discovery_rate": float((1 - probs)[kept].mean()) if kept.any() else 0.0,
                "claimed_false_omission_rate": float(probs[~kept].mean()) if not kept.all() else 0.0,
            }
        )
    return pd.DataFrame(rows)


def stability(posteriors: Sequence[Posterior]) -> pd.DataFrame:
    """How well the inclusion probabilities of independent fits agree.

    The order of hidden units is arbitrary: fits from different initial weights may learn the same function in different
    units, so that they agree by block but not weight by weight. Fits from the same initial weights can be compared
    weight by weight.

    Args:
        posteriors: two or more posteriors of the same model.

    Returns:
        One row for each site and one for ``all`` masks: ``rank_correlation``, Spearman's rank correlation of the
        inclusion probabilities, averaged over pairs of fits; ``r_hat``, the median over the masks of
        ``sqrt((W + B) / W)``, where B is the variance of the inclusion probability p between fits and W the mean over
        the fits of the variance p (1 - p) of the mask, at least 1e-4 (so that the ratio is 1 for masks on which all
        fits are certain and agree); ``split``, the share of the masks that are 1 in the median-probability model of
        some fit and 0 in that of another.

    Raises:
        InputError: if there are fewer than two posteriors, their models differ, or one has no masks.
    """
    from torchmetrics.functional import spearman_corrcoef  # takes seconds to import

    if len(posteriors) < 2:
        raise InputError(f"posteriors: {len(posteriors)} given; agreement takes at least two")
    every = [_probabilities(posterior) for posterior in posteriors]
    shapes = [{name: tuple(p.shape) for name, p in inside.items()} for inside in every]
    if any(other != shapes[0] for other in shapes):
        raise InputError("posteriors: their masks have different sites or shapes; fit the same model each time")
    stacked = {name: torch.stack([inside[name].cpu().flatten() for inside in every]) for name in every[0]}
    stacked["all"] = torch.cat(list(stacked.values()), 1)
    rows = []
    for name, probs in stacked.items():
        pairs = [float(spearman_corrcoef(probs[i], probs[j])) for i, j in combinations(range(len(posteriors)), 2)]
        within = (probs * (1 - probs)).mean(0).clamp_min(1e-4)
        ratio = ((within + probs.var(0)) / within).sqrt()
        kept = probs >= 0.5
        rows.append(
            {
                "site": name,
                "rank_correlation": float(np.mean(pairs)),
                "r_hat": float(ratio.median()),
                "split": float((kept.any(0) & ~kept.all(0)).float().mean()),
            }
        )
    return pd.DataFrame(rows)


def _probabilities(posterior: Posterior) -> dict[str, Tensor]:
    check_masks(posterior)
    return posterior.inclusion_probabilities()


def _by_block(site: WeightSite, values: Tensor) -> Tensor:
    """Mean over the weights of each block, (blocks,), or (1,) for a site without blocks."""
    values = values.detach().cpu().float().expand(site.shape)
    if LAYER not in site.dims:
        return values.mean().unsqueeze(0)
    return values.mean([i for i, d in enumerate(site.dims) if d != LAYER])
