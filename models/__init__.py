"""The generative side: the model and its priors."""

from .ising_vit import IsingNetwork, IsingViT
from .likelihoods import Classes, Likelihood, Regression, SeveralLabels
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
    "Classes",
    "FeatureSpikeSlab",
    "Flat",
    "HierarchicalSpikeSlab",
    "IndependentSpikeSlab",
    "Interaction",
    "IsingNetwork",
    "IsingSpikeSlab",
    "IsingViT",
    "LatticeSpikeSlab",
    "Likelihood",
    "LogUniform",
    "Prior",
    "Regression",
    "RegularisedHorseshoe",
    "SeveralLabels",
    "StructuredSpikeSlab",
]
