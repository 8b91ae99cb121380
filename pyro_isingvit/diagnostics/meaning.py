"""What the inclusion probabilities of a fit mean: error rates that were measured where the truth is known, or scores.

The measurements are those of benchmarks/inclusion.py; docs/inclusion.md describes them.
"""

import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pandas as pd

from ..errors import InputError
from ..guides import Guide
from ..network import WeightSite
from ..posterior import Posterior
from ..settings import describe

LARGEST_GAP = 0.05
"""Largest distance of a reliability curve from the diagonal at which what it is of is called a probability."""

INPUT = "patch_embed"
"""The one site whose masks have a known truth: whether a feature of the image has to do with the label."""

TRUSTED: Mapping[str, Mapping[str, Any]] = {
    "network": {"class": "ViT", "stem": "patches"},
    "prior": {"class": "FeatureSpikeSlab", "levels": {INPUT: ["patch"]}, "inclusion": 0.2, "slab_scale": 1.0},
    "guide": {"class": "LikelihoodGuided", "target_density": None, "fixed_scale": None, "unit_scales": False},
    "estimator": {"class": "SquaredGradient"},
}
"""What a posterior has to be of for its reliability to have been measured: classes and settings."""

RIGHT = (
    "Probabilities: of what is selected, 1 - p is an error rate. The few between .1 and .9 are too low, and a small p "
    "does not say that a feature is irrelevant."
)
"""How probabilities whose reliability was measured are to be read."""

NEAR, FAR = 1.25, 4.0
"""Largest ratio of temperatures at which a measurement is of a setting, and at which it is quoted beside it."""


def measured_reliability() -> pd.DataFrame:
    """What was measured on test beds of which the truth is known.

    Returns:
        One row for each kind of masks and pair of temperatures, with columns ``masks``: ``weights``, ``features`` (with
        masks elsewhere too) or ``features alone``; ``temperature`` of the weights; ``mask_temperature``; ``fits``, how
        many; ``claimed``, the false discovery rate that the probabilities claim for what is selected at 0.5;
        ``realised``, the true one; ``power``; ``largest_gap``, the largest distance of the reliability curve from the
        diagonal over bins of at least 100 masks.
    """
    with (files(__package__) / "measured.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def inclusion_meaning(posterior: Posterior) -> pd.DataFrame:
    """What the inclusion probabilities of each site mean.

    Args:
        posterior: a posterior with masks.

    Returns:
        One row for each site with masks, with columns ``site``; ``masks``: ``weights``, ``features`` or ``units``, or
        ``features alone``; ``reads_as``: ``"probability"`` if the reliability of posteriors of this kind (`TRUSTED`)
        was measured at these temperatures to be within `LARGEST_GAP` of the diagonal, ``"held"`` for masks held at
        those of another posterior, else ``"score"``; ``claimed`` and
        ``realised``, the false discovery rates measured at a setting nearby, missing where there is none; ``says``,
        all this in a sentence or two.

    Raises:
        InputError: if the posterior has no masks.
    """
    check_masks(posterior)
    guide = posterior.guides[0]
    trusted = _is_trusted(guide)
    rows = []
    for site in posterior.model.sites:
        if site.name not in guide.mask_shapes:
            continue
        masks = _kind(site, guide)
        row = {"site": site.name, "masks": masks, "reads_as": "score", "claimed": math.nan, "realised": math.nan}
        if site.name in guide.held:
            row["reads_as"] = "held"
            row["says"] = "Held at the inclusion probabilities of another posterior, and as reliable as they are there."
        elif site.name != INPUT:
            row["says"] = (
                "Scores that serve prediction, not error rates: which of these weights matter has no known truth to "
                "compare with."
            )
        else:
            row |= _measured(masks, posterior.model.temperature, guide.mask_temperature_of(site), trusted)
        rows.append(row)
    return pd.DataFrame(rows)


def _measured(masks: str, temperature: float, mask_temperature: float, trusted: bool) -> dict[str, Any]:
    """What was measured of masks of the input at the nearest temperatures, and how to read them."""
    table = measured_reliability().query("masks == @masks")
    ratios = [
        (table[name] / own).map(math.log).abs()
        for name, own in (("temperature", temperature), ("mask_temperature", mask_temperature))
    ]
    furthest = ratios[0].combine(ratios[1], max)
    if not len(table) or furthest.min() > math.log(FAR):
        says = (
            f"Scores, not error rates: masks of {masks} were not measured near this setting (temperature "
            f"{temperature:.2g}, of masks {mask_temperature:.2g})."
        )
        return {"says": says}
    near = table.loc[(ratios[0] + ratios[1]).where(furthest <= math.log(FAR)).idxmin()]
    right = trusted and furthest[near.name] <= math.log(NEAR) and near["largest_gap"] <= LARGEST_GAP
    says = (
        (RIGHT if right else "Scores, not error rates.")
        + f" In the benchmark, on digits among decoys with 300 images (masks of {masks}, temperature "
        f"{near['temperature']:g}, of masks {near['mask_temperature']:g}), {near['realised']:.1%} of what was selected "
        f"at 0.5 was false, where {near['claimed']:.1%} was claimed, and {near['power']:.0%} of what matters was found."
    )
    reads_as = "probability" if right else "score"
    return {"reads_as": reads_as, "claimed": near["claimed"], "realised": near["realised"], "says": says}


def _is_trusted(guide: Guide) -> bool:
    """Whether a guide, its prior and its network are of the kind that was measured."""
    model = guide.model
    found = {"network": describe(model.network), "prior": describe(model.prior), "guide": describe(guide)}
    found["estimator"] = found["guide"]["settings"].get("estimator") or {"class": None, "settings": {}}
    facts = {part: {"class": each["class"]} | each["settings"] for part, each in found.items()}
    return all(facts[part].get(name) == value for part, wanted in TRUSTED.items() for name, value in wanted.items())


def _kind(site: WeightSite, guide: Guide) -> str:
    shape = tuple(guide.mask_shapes[site.name])
    if shape == site.shape:
        return "weights"
    if site.name != INPUT or shape != (1, site.shape[1]):
        return "units"
    return "features alone" if set(guide.mask_shapes) == {INPUT} else "features"


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
