"""Bayesian sparsification of Vision Transformers as a probabilistic program."""

from .compact import CompactViT
from .data import Augment, Data, Images, from_dataset, read, split
from .distributions import Gaussian, Ising, SpikeAndSlab, StraightThroughBernoulli, StraightThroughConcrete
from .elbo import TraceGraph_ELBO
from .errors import InputError, TrainingError
from .fit import fit, fit_path
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
    SparseVariationalDropout,
)
from .interactions import VIT_COUPLINGS, Coupling, CouplingGraph
from .models import (
    Flat,
    HierarchicalSpikeSlab,
    IndependentSpikeSlab,
    IsingSpikeSlab,
    IsingViT,
    LatticeSpikeSlab,
    LogUniform,
    Prior,
    RegularisedHorseshoe,
    StructuredSpikeSlab,
)
from .network import ViT, ViTConfig
from .predict import Prediction, predict, predict_plug_in
from .pruning import export, fine_tune, prune, prune_draws, shrink
from .result import FitResult
from .sites import WeightSite
from .trainer import FitConfig

__all__ = [
    "VIT_COUPLINGS",
    "Augment",
    "Auto",
    "BackwardIsing",
    "CompactViT",
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
    "LogUniform",
    "LowRank",
    "MeanField",
    "PointEstimate",
    "Prediction",
    "Prior",
    "RegularisedHorseshoe",
    "Relaxed",
    "ScoreFunction",
    "SparseVariationalDropout",
    "SpikeAndSlab",
    "StraightThroughBernoulli",
    "StraightThroughConcrete",
    "StructuredSpikeSlab",
    "TraceGraph_ELBO",
    "TrainingError",
    "ViT",
    "ViTConfig",
    "WeightSite",
    "export",
    "fine_tune",
    "fit",
    "fit_path",
    "from_dataset",
    "predict",
    "predict_plug_in",
    "prune",
    "prune_draws",
    "read",
    "shrink",
    "split",
]
