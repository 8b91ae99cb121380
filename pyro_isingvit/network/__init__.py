"""The network: a plain torch Vision Transformer without priors or masks, its weight sites, and its stem."""

from .sites import LAYER, Linear, WeightSite, by_name, linear
from .vit import ViT, ViTConfig

__all__ = ["LAYER", "Linear", "ViT", "ViTConfig", "WeightSite", "by_name", "linear"]
