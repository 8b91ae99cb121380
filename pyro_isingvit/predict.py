"""The posterior predictive, streamed: one batch of images and one draw of the weights at a time."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from .data import Images
from .errors import InputError, TrainingError
from .guides import Guide
from .models import IsingViT

BATCH = 250
"""Images at a time."""

_SCALES = -4, 2, 97
"""That `best_logit_scale` chooses from: exponents of 2, from, to, and how many."""

_SCALE_SPREAD = 0.25
"""Scale of the Laplace prior of the scale's logarithm."""


@dataclass(frozen=True)
class Prediction:
    """Posterior predictive of n images over k classes.

    Attributes:
        probs: mean probabilities over the draws, (n, k).
        lower, upper: bounds of the central credible interval of each probability, (n, k).
        entropy: of the mean probabilities, in nats, (n,): all uncertainty.
        mutual_information: between label and weights, in nats, (n,): the part that more data would remove.
    """

    probs: Tensor
    lower: Tensor
    upper: Tensor
    entropy: Tensor
    mutual_information: Tensor

    @property
    def labels(self) -> Tensor:
        """Most probable class, (n,)."""
        return self.probs.argmax(-1)


def predict(
    model: IsingViT,
    guide: nn.Module,
    images: Tensor,
    draws: int = 50,
    interval: float = 0.9,
    batch_size: int = BATCH,
    seed: int = 0,
    logit_scale: float = 1.0,
) -> Prediction:
    """Average the network's predictions over draws of masks and weights from a guide.

    The t-th draw is the same for all images. Memory beyond the result is that of one batch.

    Args:
        model, guide: a fitted pair.
        images: (n, channels, height, width) within [0, 1], on any device.
        draws: number of draws from the guide.
        interval: mass of the credible intervals, within (0, 1).
        batch_size: images at a time.
        seed: of the draws.
        logit_scale: that logits are multiplied by, see `best_logit_scale`.

    Raises:
        InputError: if a value is out of range.
    """
    if draws < 1:
        raise InputError(f"draws={draws}: need at least one")
    if not 0 < interval < 1:
        raise InputError(f"interval={interval}: must lie strictly between 0 and 1, e.g. 0.9")
    device = next(guide.parameters()).device
    levels = torch.tensor([(1 - interval) / 2, (1 + interval) / 2], device=device)
    parts: list[tuple[Tensor, ...]] = []
    with evaluating(model, guide), seeded(device):
        for batch in images.split(batch_size):
            batch = batch.to(device)
            # In place: small results that outlive large buffers would keep the heap from shrinking between draws.
            each = None
            for t, draw in enumerate(posterior_draws(model, guide, draws, seed)):
                probs = (logit_scale * model.logits(batch, draw.weights)).softmax(-1)
                each = probs.new_empty(draws, *probs.shape) if each is None else each
                each[t] = probs
                del draw
            assert each is not None
            probs = each.mean(0)
            entropy = torch.special.entr(probs).sum(-1)
            expected = torch.special.entr(each).sum(-1).mean(0)
            lower, upper = each.quantile(levels, 0)
            parts.append((probs, lower, upper, entropy, (entropy - expected).clamp_min(0)))
    return Prediction(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def best_logit_scale(model: IsingViT, guide: nn.Module, held_out: Images, draws: int = 20, seed: int = 0) -> float:
    """The scale of the logits at which the posterior predictive suits held-out images: its temperature scaling.

    Its logarithm is the mode under a Laplace prior around 0, of scale 1/4: four nats of the likelihood for each factor
    e. A few hundred images that happen to be classified right, all of them, would else sharpen without end; of networks
    that are far too sure the errors say so by much more.

    Args:
        model, guide: a fitted pair.
        held_out: images that it was not trained on.
        draws: number of draws from the guide.
        seed: of the draws.

    Returns:
        The scale, within 1/16 and 4 and to 2 %: below 1 the predictions were too sure, above 1 not sure enough.

    Raises:
        InputError: if there are no draws, or the classes are not the network's.
        TrainingError: if the predictions are not finite.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if draws < 1:
        raise InputError(f"draws={draws}: need at least one")
    device = next(guide.parameters()).device
    parts = []
    with evaluating(model, guide), seeded(device):
        for images, labels in zip(held_out.images.split(BATCH), held_out.labels.split(BATCH), strict=True):
            images, summed = images.to(device), None
            for draw in posterior_draws(model, guide, draws, seed):
                logits = model.logits(images, draw.weights)
                if logits.shape[-1] != held_out.classes:
                    raise InputError(f"held_out.classes={held_out.classes}: the network has {logits.shape[-1]}")
                each = _scaled_likelihood(logits, labels)
                summed = each if summed is None else summed.logaddexp(each)
            assert summed is not None
            parts.append(summed)
    return _likeliest(torch.cat(parts, 1))


def best_scale(log_probs: Tensor, labels: Tensor) -> float:
    """The same for predictions that are given: their log-probabilities (n, classes), of labels (n,).

    Raises:
        TrainingError: if they are not finite.
    """
    batches = zip(log_probs.split(BATCH), labels.split(BATCH), strict=True)
    return _likeliest(torch.cat([_scaled_likelihood(*batch) for batch in batches], 1))


def _scaled_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of each label by logits (n, classes) at each scale, (scales, n)."""
    scaled = torch.linspace(*_SCALES, device=logits.device).exp2().view(-1, 1, 1) * logits
    index = labels.to(logits.device).view(1, -1, 1).expand(len(scaled), -1, -1)
    return scaled.gather(-1, index).squeeze(-1) - scaled.logsumexp(-1)


def _likeliest(log_likelihood: Tensor) -> float:
    """The scale with the highest posterior density, from log-likelihoods (scales, n) but for a constant."""
    exponents = torch.linspace(*_SCALES, device=log_likelihood.device)
    log_prior = -(exponents.double() * math.log(2) / _SCALE_SPREAD).abs()
    log_posterior = log_likelihood.double().sum(-1) + log_prior
    if not log_posterior.isfinite().all():
        raise TrainingError("no finite NLL of the held-out images: training has diverged; try a lower learning_rate")
    return float(exponents[log_posterior.argmax()].exp2())


def predict_plug_in(
    model: IsingViT, guide: Guide, images: Tensor, masks: Mapping[str, Tensor] | None = None, batch_size: int = BATCH
) -> Tensor:
    """Probabilities (n, k) of one network: the posterior mean weights under given masks.

    Args:
        model, guide: a fitted pair.
        images: (n, channels, height, width) within [0, 1], on any device.
        masks: by site name; if None those that are fixed, else the median-probability model.
        batch_size: images at a time.
    """
    with evaluating(model, guide):
        fixed = guide.median_masks() if model.fixed_masks is None else model.fixed_masks
        weights = guide.mean_weights(dict(fixed if masks is None else masks))
        return log_probs(model, images, weights, batch_size).exp()


def log_probs(model: IsingViT, images: Tensor, weights: Mapping[str, Tensor], batch_size: int = BATCH) -> Tensor:
    """Log-probabilities (n, classes) of images by the network with given weights, batch by batch, on the CPU."""
    device = model.prior.zero.device
    return torch.cat([model.logits(b.to(device), weights).log_softmax(-1).cpu() for b in images.split(batch_size)])


def scale_logits(log_probs: Tensor, scale: float) -> Tensor:
    """Log-probabilities (n, classes) as they are when the logits behind them are multiplied by a scale."""
    return (scale * log_probs).log_softmax(-1)


def draw_labels(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """A label (n,) for each row of log-probabilities (n, classes)."""
    return torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(-1)


@dataclass(frozen=True)
class Draw:
    """One draw of everything latent.

    Attributes:
        masks: by site name; empty where there are none.
        weights: masks applied, by site name.
    """

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    _model: Any
    _guide: Any

    @property
    def log_ratio(self) -> float:
        """log p(masks, weights) - log q(masks, weights), in nats, up to a constant of the prior's."""
        return float(self._model.log_prob_sum() - self._guide.log_prob_sum())


def posterior_draws(model: IsingViT, guide: nn.Module, draws: int, seed: int) -> Iterator[Draw]:
    """Independent draws from a guide. The t-th depends on seed and t alone.

    To be used within `evaluating` and `seeded`.
    """
    for draw in range(draws):
        torch.manual_seed(seed * 1_000_003 + draw)
        of_guide = poutine.trace(guide).get_trace()
        of_model = poutine.trace(poutine.replay(model.draw_weights, trace=of_guide)).get_trace()
        weights = of_model.nodes["_RETURN"]["value"]
        if model.fixed_masks is not None:
            masks = dict(model.fixed_masks)
        else:
            names = {site.name: site.mask_name for site in model.sites if site.mask_name in of_model.nodes}
            masks = {name: of_model.nodes[node]["value"] for name, node in names.items()}
        yield Draw(masks, weights, of_model, of_guide)


def prior_draws(model: IsingViT, draws: int, seed: int) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Draws of (masks, weights) from the prior, interactions of the masks included; by site name.

    To be used within `evaluating` and `seeded`.

    Raises:
        NotImplementedError: if the prior cannot draw from its interaction, see `Prior.draw_masks`.
    """
    torch.manual_seed(seed)
    every = model.prior.draw_masks(draws)
    for draw in range(draws):
        masks = {name: drawn[draw] for name, drawn in every.items()}
        weights = {site.name: model.prior.weight(site, masks.get(site.name)).sample() for site in model.sites}
        yield masks, weights


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode, hidden from outer Pyro handlers; modes are put back at the end."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad(), poutine.block():
            yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)


@contextmanager
def seeded(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Torch's random state is put back at the end; set from ``seed`` at the start if there is one."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
