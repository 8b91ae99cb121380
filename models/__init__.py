"""The generative side: the model and its priors."""

from .ising_vit import IsingViT
from .priors import (
    BackwardIsingSpikeSlab,
    FeatureSpikeSlab,
    Flat,
    HierarchicalSpikeSlab,
    IndependentSpikeSlab,
    Interaction,
    IsingSpikeSlab,
    LatticeSpikeSlab,
    LogUniform,
    Prior,
    RegularisedHorseshoe,
    StructuredSpikeSlab,
)

__all__ = [
    "BackwardIsingSpikeSlab",
    "FeatureSpikeSlab",
    "Flat",
    "HierarchicalSpikeSlab",
    "IndependentSpikeSlab",
    "Interaction",
    "IsingSpikeSlab",
    "IsingViT",
    "LatticeSpikeSlab",
    "LogUniform",
    "Prior",
    "RegularisedHorseshoe",
    "StructuredSpikeSlab",
]
