"""What the posterior keeps, by role and block."""

import pandas as pd

from ..guides import Guide
from ..sites import LAYER


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
