"""Bayesian sparsification of Vision Transformers as a probabilistic program."""

from .data import Data, Images, RandomAffine, read, split
from .distributions import Gaussian, Ising, SpikeAndSlab, StraightThroughBernoulli, StraightThroughConcrete
from .elbo import TraceGraph_ELBO
from .errors import InputError, TrainingError
from .fit import FitConfig, fit
from .guides import (
    Auto,
    BackwardIsing,
    Guide,
    LikelihoodGuided,
    LowRank,
    MeanField,
    PointEstimate,
    Relaxed,
    ScoreFunction,
)
from .interactions import VIT_COUPLINGS, Coupling, CouplingGraph
from .models import (
    Flat,
    HierarchicalSpikeSlab,
    IndependentSpikeSlab,
    IsingSpikeSlab,
    IsingViT,
    LatticeSpikeSlab,
    Prior,
    RegularisedHorseshoe,
    StructuredSpikeSlab,
)
from .network import ViT, ViTConfig
from .predict import Prediction, predict, predict_plug_in
from .result import FitResult
from .sites import WeightSite

__all__ = [
    "VIT_COUPLINGS",
    "Auto",
    "BackwardIsing",
    "Coupling",
    "CouplingGraph",
    "Data",
    "FitConfig",
    "FitResult",
    "Flat",
    "Gaussian",
    "Guide",
    "HierarchicalSpikeSlab",
    "Images",
    "IndependentSpikeSlab",
    "InputError",
    "Ising",
    "IsingSpikeSlab",
    "IsingViT",
    "LatticeSpikeSlab",
    "LikelihoodGuided",
    "LowRank",
    "MeanField",
    "PointEstimate",
    "Prediction",
    "Prior",
    "RandomAffine",
    "RegularisedHorseshoe",
    "Relaxed",
    "ScoreFunction",
    "SpikeAndSlab",
    "StraightThroughBernoulli",
    "StraightThroughConcrete",
    "StructuredSpikeSlab",
    "TraceGraph_ELBO",
    "TrainingError",
    "ViT",
    "ViTConfig",
    "WeightSite",
    "fit",
    "predict",
    "predict_plug_in",
    "read",
    "split",
]
