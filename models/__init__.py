"""The generative side: the model and its priors."""

from .ising_vit import IsingViT
from .priors import (
    Flat,
    HierarchicalSpikeSlab,
    IndependentSpikeSlab,
    IsingSpikeSlab,
    LatticeSpikeSlab,
    LogUniform,
    Prior,
    RegularisedHorseshoe,
    StructuredSpikeSlab,
)

__all__ = [
    "Flat",
    "HierarchicalSpikeSlab",
    "IndependentSpikeSlab",
    "IsingSpikeSlab",
    "IsingViT",
    "LatticeSpikeSlab",
    "LogUniform",
    "Prior",
    "RegularisedHorseshoe",
    "StructuredSpikeSlab",
]
