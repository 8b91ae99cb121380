"""What the posterior keeps, by role and block."""

import pandas as pd

from ..guides import Guide
from ..sites import LAYER

UNITS = {
    "heads": ((LAYER, "head"), ("encoder.value", "encoder.out")),
    "hidden units": ((LAYER, "hidden"), ("encoder.up", "encoder.down")),
}
"""Parts of a `ViT` that can go as a whole: their dimensions, and the roles through which they act."""


def alive_units(guide: Guide) -> dict[str, tuple[int, int]]:
    """Of each kind of `UNITS`, how many the median-probability model leaves alive, and how many there were.

    A unit is alive if at least one weight into it and one out of it are kept.
    """
    masks, sites = guide.median_masks(), {site.name: site for site in guide.model.sites}
    counts = {}
    for kind, (dims, roles) in UNITS.items():
        if all(role in sites for role in roles):
            alive = None
            for role in roles:
                site = sites[role]
                kept = masks[role].expand(site.shape) > 0 if role in masks else None
                if kept is not None:
                    kept = kept.sum([i for i, d in enumerate(site.dims) if d not in dims]) > 0
                    alive = kept if alive is None else alive & kept
            total = 1
            for size, dim in zip(sites[roles[0]].shape, sites[roles[0]].dims, strict=True):
                total *= size if dim in dims else 1
            counts[kind] = total if alive is None else int(alive.sum()), total
    return counts


def inclusion_table(guide: Guide) -> pd.DataFrame:
    """One row for each site and block, in the order in which the network uses them.

    Returns:
        Columns ``site``; ``layer``, missing where the site has no blocks; ``weights``; ``expected``, the mean
        inclusion probability; ``median``, the share of the weights in the median-probability model.
    """
    inside = guide.inclusion_probabilities()
    rows = []
    for order, site in enumerate(s for s in guide.model.sites if s.name in inside):
        probs = inside[site.name].expand(site.shape)
        layered = LAYER in site.dims
        for layer, part in enumerate(probs.unbind(site.axis(LAYER)) if layered else [probs]):
            rows.append(
                {
                    "site": site.name,
                    "layer": layer if layered else None,
                    "weights": part.numel(),
                    "expected": float(part.mean()),
                    "median": float((part >= 0.5).float().mean()),
                    "order": order,
                }
            )
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    # Sites without blocks stand before or after all blocks; those with blocks are one run of sites.
    blocks = table.loc[table["layer"].notna(), "order"]
    first = blocks.min() if len(blocks) else 0
    place = table["order"].where(table["layer"].isna(), first)
    return (
        table.assign(place=place)
        .sort_values(["place", "layer", "order"])
        .drop(columns=["place", "order"])
        .reset_index(drop=True)
    )
