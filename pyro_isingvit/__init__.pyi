from . import data, diagnostics, guides, pruning
from .couplings import Coupling
from .data import Augment, Images, from_dataset, read, split
from .diagnostics import plots
from .distributions import Gaussian, SpikeAndSlab, StraightThroughBernoulli
from .errors import InputError, InterruptedFitError, StorageError, TrainingError
from .guides import Guide, LikelihoodGuided, MeanField
from .inference.config import FitConfig
from .inference.elbo import TraceGraph_ELBO
from .inference.fit import fit, fit_path
from .inference.mixture import fit_mixture
from .inference.result import FitResult
from .inference.search import TemperatureSearch
from .interactions import CouplingGraph
from .models import (
    FeatureSpikeSlab,
    IndependentSpikeSlab,
    Interaction,
    IsingSpikeSlab,
    IsingViT,
    Prior,
    StructuredSpikeSlab,
    priors,
)
from .network import ViT, ViTConfig, WeightSite
from .posterior import Posterior
from .prediction import Prediction
from .pruning import export, prune

__all__ = [
    "Augment",
    "Coupling",
    "CouplingGraph",
    "FeatureSpikeSlab",
    "FitConfig",
    "FitResult",
    "Gaussian",
    "Guide",
    "Images",
    "IndependentSpikeSlab",
    "InputError",
    "Interaction",
    "InterruptedFitError",
    "IsingSpikeSlab",
    "IsingViT",
    "LikelihoodGuided",
    "MeanField",
    "Posterior",
    "Prediction",
    "Prior",
    "SpikeAndSlab",
    "StorageError",
    "StraightThroughBernoulli",
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
    "fit",
    "fit_mixture",
    "fit_path",
    "from_dataset",
    "guides",
    "plots",
    "priors",
    "prune",
    "pruning",
    "read",
    "split",
]
