"""What the posterior keeps, by role and block."""

import pandas as pd

from ..guides import Guide
from ..sites import LAYER


def inclusion_table(guide: Guide) -> pd.DataFrame:
    """One row for each site and block, in the order of the network.

    Returns:
        Columns ``site``; ``layer``, missing where the site has no blocks; ``weights``; ``expected``, the mean
        inclusion probability; ``median``, the share of the weights in the median-probability model.
    """
    rows = []
    for site in guide.model.sites:
        if site.name not in guide.mask_shapes:
            continue
        probs = guide.inclusion_probabilities()[site.name].expand(site.shape)
        layered = LAYER in site.dims
        for layer, part in enumerate(probs.unbind(site.axis(LAYER)) if layered else [probs]):
            rows.append(
                {
                    "site": site.name,
                    "layer": layer if layered else None,
                    "weights": part.numel(),
                    "expected": float(part.mean()),
                    "median": float((part >= 0.5).float().mean()),
                }
            )
    return pd.DataFrame(rows).astype({"layer": "Int64"})
