"""Draws of masks and weights from a guide or a prior, one at a time, and the logits of a network with them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from .errors import InputError, check_count
from .guides import Guide
from .models import IsingViT
from .models.likelihoods import require_classes
from .programs import DrawnOnce

BATCH = 250
"""Number of images in one pass of the network."""

MOST_DRAWS = 1_000_000
"""Largest number of draws that is taken for meant."""

_ONE_AT_A_TIME = threading.RLock()
"""Lock of what all threads share: Pyro's handlers, torch's generator, and the network while it has drawn weights."""


@dataclass(frozen=True)
class Draw:
    """One draw of all masks and weights.

    Attributes:
        masks: by site name; empty if there are none.
        weights: by site name, with the masks applied.
        model: the model to whose network they belong.
        latents: latent variables of the prior's own, such as an unknown scale, by the name of their sample site; from
            the prior, only those that weights depend on.
    """

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    model: IsingViT = field(repr=False)
    latents: dict[str, Tensor] = field(default_factory=dict)
    _log_ratio: Callable[[], Tensor] | None = field(default=None, repr=False)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of a batch of images, on the device of the model."""
        return network_logits(self.model, images, self.weights)

    def log_probs(self, images: Tensor) -> Tensor:
        """Log-probabilities (n, classes) of any number of images, on the CPU.

        Raises:
            InputError: if labels are not classes.
        """
        require_classes(self.model.likelihood, "log_probs", "; use outputs")
        return torch.cat([self.logits(batch).log_softmax(-1).cpu() for batch in images.split(BATCH)])

    def outputs(self, images: Tensor) -> Tensor:
        """Outputs (n, outputs) of the network for any number of images, on the CPU."""
        return torch.cat([self.logits(batch).cpu() for batch in images.split(BATCH)])

    @property
    def log_ratio(self) -> float:
        """log p(masks, weights) - log q(masks, weights), in nats, up to a constant of the prior.

        Only draws from a guide have it.
        """
        if self._log_ratio is None:
            raise InputError("log_ratio: a draw from the prior has none; only draws from a guide do")
        with torch.no_grad():
            return float(self._log_ratio())


def network_logits(model: IsingViT, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Logits (n, classes) of a batch of images by a model's network with given weights, in evaluation mode."""
    with _in_evaluation_mode(model):
        return model.logits(images.to(model.prior.zero.device), weights)


def guide_draw(guide: Guide, seed: int) -> Draw:
    """A draw from a guide. It depends on the seed alone, and leaves modes and random states unchanged."""
    model = guide.model
    with evaluating(model, guide), seeded(model.prior.zero.device, seed):
        joint = guide.draw_jointly()
        if joint is not None:
            masks, weights = joint.masks, joint.weights
            return Draw(masks, weights, model, {}, partial(_log_ratio, guide, masks, weights))
        of_guide = poutine.trace(guide).get_trace()
        of_model = poutine.trace(poutine.replay(model.draw_weights, trace=of_guide)).get_trace()
    weights = of_model.nodes["_RETURN"]["value"]
    if model.fixed_masks is not None:
        masks = dict(model.fixed_masks)
    else:
        names = {site.name: site.mask_name for site in model.sites if site.mask_name in of_model.nodes}
        masks = {name: of_model.nodes[node]["value"] for name, node in names.items()}
    return Draw(
        masks, weights, model, _latents(of_model, model), lambda: of_model.log_prob_sum() - of_guide.log_prob_sum()
    )


def _latents(trace: poutine.Trace, model: IsingViT) -> dict[str, Tensor]:
    """The latent variables of a trace of the model that are neither masks nor weights, by name."""
    sites = {name for site in model.sites for name in (site.mask_name, site.weight_name)}
    return {
        name: trace.nodes[name]["value"].detach()
        for name in trace.stochastic_nodes
        if name not in sites and not site_is_subsample(trace.nodes[name])
    }


def _log_ratio(guide: Guide, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """log p - log q of masks and weights that a guide without other latent variables has drawn at once."""
    model = guide.model
    data = {site.weight_name: weights[site.name] for site in model.sites}
    if model.fixed_masks is None:
        data |= {site.mask_name: masks[site.name] for site in model.sites if site.name in masks}
    with evaluating(model, guide):
        of_model, of_guide = (
            poutine.trace(poutine.condition(f, data)).get_trace() for f in (model.draw_weights, guide)
        )
    return of_model.log_prob_sum() - of_guide.log_prob_sum()


def mask_draw(guide: Guide, seed: int) -> dict[str, Tensor]:
    """The masks of a draw from a guide alone, by site name; see `guide_draw`."""
    with evaluating(guide), seeded(guide.model.prior.zero.device, seed):
        return guide.draw_masks()


def prior_draws(model: IsingViT, draws: int, seed: int) -> Iterator[Draw]:
    """Draws of masks and weights from the prior, including the interaction of its masks.

    Raises:
        NotImplementedError: if the interaction of the prior does not implement `draw`, see `Prior.draw_masks`.
    """
    device = model.prior.zero.device
    with evaluating(model), seeded(device, draw_seed(seed, -1)):
        every = model.prior.draw_masks(draws)
    for draw in range(draws):
        masks = {name: drawn[draw] for name, drawn in every.items()}
        with evaluating(model), seeded(device, draw_seed(seed, draw)), poutine.trace() as trace, DrawnOnce():
            weights = {site.name: model.prior.weight(site, masks.get(site.name)).sample() for site in model.sites}
        yield Draw(masks, weights, model, _latents(trace.trace, model))


def draw_seed(seed: int, draw: int) -> int:
    """Seed of the draw with this number, counted from 0."""
    return seed * 1_000_003 + draw


def draw_labels(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a label for each row of log-probabilities (n, classes); returns the labels (n,)."""
    return torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(-1)


def check_draws(draws: int) -> None:
    """Check the number of draws.

    Raises:
        InputError: if it is not an integer from 1 to `MOST_DRAWS`.
    """
    check_count("draws", draws, MOST_DRAWS)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Context in evaluation mode, without gradients, hidden from outer Pyro handlers; restores the modes at the end."""
    with _in_evaluation_mode(*modules), poutine.block():
        yield


@contextmanager
def _in_evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    with _ONE_AT_A_TIME, torch.no_grad():
        training = [module for module in modules if module.training]
        for module in training:
            module.eval()
        try:
            yield
        finally:
            for module in training:
                module.train()


@contextmanager
def seeded(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Context that sets torch's random state from ``seed``, unless it is None, and restores the state at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
