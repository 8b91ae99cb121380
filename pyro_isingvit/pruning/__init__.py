"""Cut a network down to what its posterior keeps, and export it for use without Pyro."""

from .compact import CompactViT, load
from .cost import Cost, costs
from .cut import shrink
from .decide import decide
from .exported import export
from .modules import PrunedModule, load_module, prune_module
from .networks import prune, prune_draws
from .tune import fine_tune

__all__ = [
    "CompactViT",
    "Cost",
    "PrunedModule",
    "costs",
    "decide",
    "export",
    "fine_tune",
    "load",
    "load_module",
    "prune",
    "prune_draws",
    "prune_module",
    "shrink",
]
