"""The network: a plain torch Vision Transformer, its weight sites and its stem. No Bayes inside."""

from .sites import LAYER, WeightSite, by_name
from .vit import ViT, ViTConfig

__all__ = ["LAYER", "ViT", "ViTConfig", "WeightSite", "by_name"]
