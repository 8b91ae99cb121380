"""Training on a network that was cut."""

from typing import cast

from ..compact import CompactViT
from ..data import Images
from ..errors import InputError
from ..fit import FitConfig, fit
from ..guides import PointEstimate
from ..models import Flat, IsingViT
from ..network import ViT
from ..result import FitResult


def fine_tune(
    network: CompactViT,
    train: Images,
    validation: Images | None = None,
    config: FitConfig | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a cut network on by maximum likelihood, in `fit`. It is changed in place, and back on the CPU afterwards.

    Args:
        network: from `prune`.
        train, validation, config, progress: see `fit`; the configuration's ``steps`` are those of the fine-tuning.

    Returns:
        What `fit` returned: its history, mainly.

    Raises:
        InputError: if the network is none, or see `fit`.
        TrainingError: if training broke down.
    """
    if network.config.members > 1:
        raise InputError(f"network: an ensemble of {network.config.members}; only a network of prune is fine-tuned")
    settings = (config or FitConfig()).model_copy(update={"temperature": 1.0, "target_density": None})
    model = IsingViT(cast(ViT, network), Flat(network.weight_sites()))
    try:
        result = fit(model, PointEstimate(model), train, validation, settings, progress)
    finally:
        network.requires_grad_(True)
    network.load_state_dict(network.state_dict() | result.guide.mean_weights({}))
    network.cpu().eval()
    return result
