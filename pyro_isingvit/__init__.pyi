from . import data, diagnostics, guides, pruning
from .adapted import Adapted, adapt
from .couplings import Coupling
from .data import Augment, Images, from_dataset, read, split
from .diagnostics import plots
from .distributions import Gaussian, SpikeAndSlab, StraightThroughBernoulli
from .errors import InputError, InterruptedFitError, StorageError, TrainingError
from .estimator import IsingClassifier
from .guides import Guide, LikelihoodGuided, MeanField
from .inference.config import FitConfig
from .inference.elbo import TraceGraph_ELBO
from .inference.fit import fit, fit_path
from .inference.mixture import fit_mixture
from .inference.result import FitResult
from .inference.search import TemperatureSearch
from .interactions import CouplingGraph
from .models import (
    Classes,
    FeatureSpikeSlab,
    IndependentSpikeSlab,
    Interaction,
    IsingNetwork,
    IsingSpikeSlab,
    IsingViT,
    Likelihood,
    Prior,
    Regression,
    SeveralLabels,
    StructuredSpikeSlab,
    priors,
)
from .network import ViT, ViTConfig, WeightSite
from .posterior import Posterior
from .prediction import Prediction
from .pruning import export, prune
from .targets import TargetPrediction

__version__: str

__all__ = [
    "Adapted",
    "Augment",
    "Classes",
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
    "IsingClassifier",
    "IsingNetwork",
    "IsingSpikeSlab",
    "IsingViT",
    "Likelihood",
    "LikelihoodGuided",
    "MeanField",
    "Posterior",
    "Prediction",
    "Prior",
    "Regression",
    "SeveralLabels",
    "SpikeAndSlab",
    "StorageError",
    "StraightThroughBernoulli",
    "StructuredSpikeSlab",
    "TargetPrediction",
    "TemperatureSearch",
    "TraceGraph_ELBO",
    "TrainingError",
    "ViT",
    "ViTConfig",
    "WeightSite",
    "adapt",
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
