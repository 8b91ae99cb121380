"""What the inclusion probabilities of a fit mean: error rates that were measured where the truth is known, or scores.

The measurements are those of benchmarks/inclusion.py; docs/inclusion.md describes them.
"""

import math
from importlib.resources import files

import pandas as pd

from ..errors import InputError
from ..network import WeightSite
from ..posterior import Posterior

LARGEST_GAP = 0.05
"""Largest distance of a reliability curve from the diagonal at which what it is of is called a probability."""

BEDS = "digits among decoys"
"""Data of which the truth is known, on which the measurements were made."""

INPUT = "patch_embed"
"""The one site whose masks have a known truth: whether a feature of the image has to do with the label."""


def measured_reliability() -> pd.DataFrame:
    """What was measured on test beds of which the truth is known.

    Returns:
        One row for each kind of masks and pair of temperatures, with columns ``masks``: ``weights``, ``features`` (with
        masks elsewhere too) or ``features alone``; ``temperature`` of the weights; ``mask_temperature``; ``fits``, how
        many; ``claimed``, the false discovery rate that the probabilities claim for what is selected at 0.5;
        ``realised``, the true one; ``power``; ``largest_gap``, the largest distance of the reliability curve from the
        diagonal over bins of at least 100 masks.
    """
    with (files(__package__) / "measured.csv").open() as file:
        return pd.read_csv(file)


def inclusion_meaning(posterior: Posterior) -> pd.DataFrame:
    """What the inclusion probabilities of each site mean.

    Args:
        posterior: a posterior with masks.

    Returns:
        One row for each site with masks, with columns ``site``; ``masks``: ``weights``, ``features`` or ``units``, or
        ``features alone``; ``reads_as``: ``"probability"`` if the reliability of such masks was measured to be within
        `LARGEST_GAP` of the diagonal, else ``"score"``; ``claimed`` and ``realised``, the false discovery rates
        measured at the nearest setting, missing where there is no truth to measure against; ``says``, all this in a
        sentence or two.

    Raises:
        InputError: if the posterior has no masks.
    """
    check_masks(posterior)
    guide = posterior.guides[0]
    alone = set(guide.mask_shapes) == {INPUT}
    rows = []
    for site in posterior.model.sites:
        if site.name not in guide.mask_shapes:
            continue
        masks = _kind(site, tuple(guide.mask_shapes[site.name]), alone)
        row = {"site": site.name, "masks": masks, "reads_as": "score", "claimed": math.nan, "realised": math.nan}
        if site.name in guide.held:
            says = "Held at what another posterior says; see what was said of that one."
        elif site.name != INPUT:
            says = (
                "Scores that serve prediction, not error rates: which of these weights matter has no known truth that "
                "they could be compared with."
            )
        else:
            at = guide.mask_temperature_of(site)
            near = _nearest(masks, posterior.model.temperature, at)
            probable = bool(near["largest_gap"] <= LARGEST_GAP and abs(math.log(at)) < 0.1)
            row |= {"claimed": near["claimed"], "realised": near["realised"]}
            row["reads_as"] = "probability" if probable else "score"
            says = (
                ("Probabilities." if probable else "Scores, not error rates.")
                + f" On {BEDS} with 300 images, at the nearest setting measured (masks of {masks}, temperature "
                f"{near['temperature']:g}, of masks {near['mask_temperature']:g}), {near['realised']:.0%} of what was "
                f"selected at 0.5 was false, where {near['claimed']:.0%} was expected, and {near['power']:.0%} of what "
                "matters was found."
            )
        rows.append(row | {"says": says})
    return pd.DataFrame(rows)


def check_masks(posterior: Posterior) -> None:
    """Check that a posterior has masks.

    Raises:
        InputError: if it has none.
    """
    guide = posterior.guides[0]
    if not guide.mask_shapes:
        raise InputError(
            f"posterior: its guide, {type(guide).__name__}, has no masks, and so no inclusion probabilities"
        )


def _kind(site: WeightSite, shape: tuple[int, ...], alone: bool) -> str:
    if shape == site.shape:
        return "weights"
    if site.name != INPUT:
        return "units"
    return "features alone" if alone else "features"


def _nearest(masks: str, temperature: float, mask_temperature: float) -> "pd.Series[float]":
    """The measurement of the same kind of masks whose temperatures are nearest, by their ratios."""
    table = measured_reliability().query("masks == @masks")
    far = (table["temperature"] / temperature).map(math.log).abs()
    far += (table["mask_temperature"] / mask_temperature).map(math.log).abs()
    return table.loc[far.idxmin()]
