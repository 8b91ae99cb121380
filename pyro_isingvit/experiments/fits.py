"""The fits of a run: what it builds, and how it trains that."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..adapted import Adapted
from ..data import Data
from ..draws import seeded
from ..errors import InputError
from ..guides import Guide, LikelihoodGuided, PointEstimate
from ..inference.config import FitConfig
from ..inference.fit import fit
from ..inference.mixture import fit_mixture
from ..inference.result import FitResult, member_seed
from ..models import FeatureSpikeSlab, Flat, IsingSpikeSlab, IsingViT, StructuredSpikeSlab
from ..models.priors.features import FEATURES
from ..models.priors.structured import UNIT_LEVELS
from ..network import ViT
from ..posterior import Posterior
from .logs import Listeners, no_listeners
from .modules import make_module
from .recipes import RunConfig


def build(config: RunConfig, selection: Posterior | None = None) -> LikelihoodGuided:
    """Build the guide of a run, with its model; the initial weights are drawn with the run's seed.

    Args:
        config: configuration of the run.
        selection: the posterior of `select_features`, whose masks are held; None to learn all masks. With it, the
            weights of an input feature share a mask in any case.
    """
    network, prior = build_network(config), config.prior
    options: dict[str, Any] = {"inclusion": prior.inclusion, "coupling": prior.coupling, "slab_scale": prior.slab_scale}
    levels: Mapping[str, tuple[str, ...]] = {}
    if isinstance(network, Adapted):
        options["couplings"] = network.couplings
        levels = network.unit_levels if prior.structured else {}
        if prior.structured and not levels:
            raise InputError("structured=True: every unit of this network that is read is a sum of several layers")
    elif prior.structured or selection is not None:
        levels = UNIT_LEVELS if prior.structured else FEATURES
    sites = network.weight_sites()
    own = StructuredSpikeSlab(sites, levels, **options) if levels else IsingSpikeSlab(sites, **options)
    model = IsingViT(network, own)
    guide = LikelihoodGuided(model, **config.guide.model_dump())
    guide.hold_masks({} if selection is None else selection.inclusion_probabilities())
    return guide


def build_deterministic(config: RunConfig, dropconnect: float = 0.0) -> PointEstimate:
    """Build the guide of the deterministic network, without masks or uncertainty."""
    network = build_network(config)
    model = IsingViT(network, Flat(network.weight_sites()))
    return PointEstimate(model, dropconnect)


def build_network(config: RunConfig) -> ViT | Adapted:
    """Build the network of a run; its weights are drawn with the run's seed."""
    with seeded(torch.device("cpu"), config.fit.seed):
        return ViT(config.network) if config.module is None else make_module(config.module, config.network)


def fit_ising(
    config: RunConfig,
    data: Data,
    progress: bool = True,
    selection: Posterior | None = None,
    listeners: Listeners = no_listeners,
    **saving: Any,
) -> FitResult:
    """Fit the posterior of a run, a mixture if it has several members.

    What ``saving`` says of checkpoints, see `fit`, and of the processes of a mixture, see `fit_mixture`, is passed on.
    """
    if config.members == 1:
        own = listeners(None)
        return fit(build(config, selection), data.train, data.validation, config.fit, progress, own, **saving)
    every = _for_members(config, lambda own: build(own, selection))
    saving["listeners"] = listeners
    return fit_mixture(every, config.members, data.train, data.validation, config.fit, progress, **saving)


def fit_deterministic(
    config: RunConfig,
    data: Data,
    progress: bool = True,
    dropconnect: float = 0.0,
    listeners: Listeners = no_listeners,
    **saving: Any,
) -> FitResult:
    """Train the network of a run by maximum likelihood with the same recipe, from the same initial weights."""
    guide = build_deterministic(config, dropconnect)
    return fit(guide, data.train, data.validation, plain(config.fit), progress, listeners(None), **saving)


def fit_ensemble(config: RunConfig, data: Data, progress: bool = True, **saving: Any) -> FitResult:
    """Train a deterministic network from the initial weights of each member of a run; the first is that of the run."""
    every = _for_members(config, build_deterministic)
    return fit_mixture(every, config.members, data.train, data.validation, plain(config.fit), progress, **saving)


def select_features(
    config: RunConfig, data: Data, progress: bool = True, listeners: Listeners = no_listeners, **saving: Any
) -> FitResult:
    """Fit masks of the features of a patch alone, at temperature 1, to the network of a run, see `FeatureSpikeSlab`.

    Prior and guide have their default settings, and images are not augmented: as it was measured, see
    `pyro_isingvit.diagnostics.inclusion_meaning`. Checkpoints are saved as ``saving`` says, see `fit`.
    """
    network = build_network(config)
    guide = LikelihoodGuided(IsingViT(network, FeatureSpikeSlab(network.weight_sites())))
    settings = plain(config.fit).model_copy(update={"augment": None, "fine_tune": 0.0})
    return fit(guide, data.train, data.validation, settings, progress, listeners(None), **saving)


def plain(settings: FitConfig) -> FitConfig:
    """Settings without what is of posteriors with masks alone."""
    return settings.model_copy(update={"temperature": 1.0, "target_density": None})


def _for_members(config: RunConfig, make: Callable[[RunConfig], Guide]) -> Callable[[], Guide]:
    """A function that makes the guide of one member after another, each with its own seed."""
    seeds = iter([member_seed(config.fit.seed, k) for k in range(config.members)])
    return lambda: make(config.model_copy(update={"fit": config.fit.model_copy(update={"seed": next(seeds)})}))
