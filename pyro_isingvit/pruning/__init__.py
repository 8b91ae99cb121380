"""From a posterior to a smaller, faster network that leaves Python."""

from .compact import CompactViT
from .cost import Cost, costs
from .cut import shrink
from .decide import decide, prune
from .ensemble import prune_draws
from .exported import export
from .tune import fine_tune

__all__ = ["CompactViT", "Cost", "costs", "decide", "export", "fine_tune", "prune", "prune_draws", "shrink"]
