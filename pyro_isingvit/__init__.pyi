from . import data, diagnostics, guides, pruning
from .data import Augment, Data, Images, from_dataset, read, split
from .diagnostics import plots
from .distributions import Gaussian, Ising, SpikeAndSlab, StraightThroughBernoulli, StraightThroughConcrete
from .errors import InputError, TrainingError
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
from .inference.config import FitConfig
from .inference.elbo import TraceGraph_ELBO
from .inference.fit import fit, fit_path
from .inference.result import FitResult
from .inference.search import TemperatureSearch
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
    priors,
)
from .network import ViT, ViTConfig, WeightSite
from .posterior import Posterior, Prediction
from .pruning import export, fine_tune, prune, prune_draws, shrink
from .pruning.compact import CompactViT

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
    "Posterior",
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
    "TemperatureSearch",
    "TraceGraph_ELBO",
    "TrainingError",
    "ViT",
    "ViTConfig",
    "WeightSite",
    "data",
    "diagnostics",
    "export",
    "fine_tune",
    "fit",
    "fit_path",
    "from_dataset",
    "guides",
    "plots",
    "priors",
    "prune",
    "prune_draws",
    "pruning",
    "read",
    "shrink",
    "split",
]
