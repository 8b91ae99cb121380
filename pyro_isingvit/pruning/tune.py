"""Fine-tuning of a pruned network."""

import copy
import math
from typing import cast

import pandas as pd

from ..data import Images
from ..errors import InputError, TrainingError
from ..guides import PointEstimate
from ..inference.config import FitConfig
from ..inference.fit import fit
from ..models import Flat, IsingViT
from ..network import ViT, WeightSite
from .compact import CompactViT


def matrices(network: CompactViT) -> list[WeightSite]:
    """The weight matrices of a single network, as sites of a model."""
    return [
        WeightSite(name, tuple(p.shape), ("output", "input"), ("input",), ("output",))
        for name, p in network.named_parameters()
        if p.dim() == 2 and name != "position"
    ]


def fine_tune(
    network: CompactViT,
    train: Images,
    validation: Images | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a pruned network further by maximum likelihood, with `fit`.

    Weights that are zero stay zero. The network is changed in place and is on the CPU afterwards. If training fails, it
    is left as it was.

    Args:
        network: a network that `prune` made.
        train, validation, config, progress: see `fit`; ``config.steps`` is the number of steps of fine-tuning.

    Returns:
        The history of the training, see `FitResult`.

    Raises:
        InputError: if the network is not a single `CompactViT`; see also `fit`.
        TrainingError: if training broke down.
    """
    if not isinstance(network, CompactViT):
        raise InputError(f"network={type(network).__name__}: give a CompactViT, as prune and shrink make them")
    if network.config.members > 1:
        raise InputError(f"network: an ensemble of {network.config.members}; only a single network is fine-tuned")
    settings = (config or FitConfig()).model_copy(update={"temperature": 1.0, "target_density": None})
    before, sites = copy.deepcopy(network.state_dict()), matrices(network)
    model = IsingViT(cast(ViT, network), Flat(sites))
    # Weights that were cut stay zero.
    model.fix_masks({site.name: (network.get_parameter(site.name) != 0).float() for site in sites})
    try:
        result = fit(PointEstimate(model), train, validation, settings, progress)
        after = result.posterior.network().state_dict()
        finite = all(bool(value.isfinite().all()) for value in after.values())
        if not finite or not math.isfinite(result.history["nll"].iloc[-1]):
            raise TrainingError(f"the network is no longer finite: lower learning_rate={settings.learning_rate}")
    except BaseException:
        network.load_state_dict(before)
        raise
    finally:
        network.requires_grad_(True).cpu().eval()
    network.load_state_dict(after)
    return result.history
