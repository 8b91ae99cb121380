"""The network: a plain torch Vision Transformer, its weight sites and its stem. No Bayes inside."""

from .sites import LAYER, Linear, WeightSite, by_name, linear
from .vit import ViT, ViTConfig

__all__ = ["LAYER", "Linear", "ViT", "ViTConfig", "WeightSite", "by_name", "linear"]
