"""Posterior predictive distributions: averages over draws of a network, in memory that depends on neither."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .data.streams import chunks_of_images
from .draws import BATCH, check_draws
from .errors import check_fraction
from .logit_scale import most_probable_scale, scaled_log_likelihood

BUFFER = 4_000_000
"""Largest number of logits that are held at once; images are taken in groups such that all draws fit."""

_TENSORS = ("probs", "lower", "upper", "entropy", "mutual_information", "between")


class HasLogits(Protocol):
    """What gives logits, such as a `Draw`."""

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of a batch of images."""


@dataclass(frozen=True)
class Prediction:
    """Posterior predictive distribution of n images over k classes.

    Attributes:
        probs: mean probabilities over the draws, (n, k).
        lower, upper: bounds of the central credible interval of each probability over the draws, (n, k).
        entropy: of the mean probabilities, in nats, (n,): total uncertainty.
        mutual_information: between label and weights, in nats, (n,): the part of it that more data would remove.
        between: the part of the mutual information that is between the members of a mixture, in nats, (n,): that
            between label and member. The rest is within members. 0 without a mixture. Estimated from the draws of each
            member, it is too high if these are few.
        names: names of the classes, in order; empty if they have none.
    """

    probs: Tensor
    lower: Tensor
    upper: Tensor
    entropy: Tensor
    mutual_information: Tensor
    between: Tensor
    names: tuple[str, ...] = ()

    def __getitem__(self, index: Tensor | slice) -> "Prediction":
        """The prediction of some of the images."""
        return replace(self, **{name: getattr(self, name)[index] for name in _TENSORS})

    @property
    def classes(self) -> list[str]:
        """Name of the most probable class of each image; its number, if the classes have no names."""
        return [self.name_of(label) for label in self.labels.tolist()]

    def name_of(self, label: int) -> str:
        """Name of a class; its number, if the classes have no names."""
        return self.names[label] if self.names else str(label)

    @property
    def labels(self) -> Tensor:
        """Most probable class, (n,)."""
        return self.probs.argmax(-1)


def predictions(
    every: Callable[[], Iterator[HasLogits]],
    draws: int,
    images: Any,
    scales: Sequence[float],
    interval: float,
    device: torch.device,
    members: int = 1,
) -> list[Prediction]:
    """The prediction at each of some logit scales, from the same passes.

    Args:
        every: starts the draws from the beginning; the t-th is the same each time.
        draws: number of draws.
        images: (n, channels, height, width), on any device; or a data set, see `chunks_of_images`.
        scales: factors on the logits.
        interval: mass of the credible intervals, within (0, 1).
        device: device of the draws.
        members: number of members, round which the draws go.

    Returns:
        One prediction for each scale, on the CPU.

    Raises:
        InputError: if a value is out of range.
    """
    check_draws(draws)
    levels = central_levels(interval, device)
    found: list[list[Prediction]] = [[] for _ in scales]
    for some in chunks_of_images(images):
        for logits in logits_of_groups(every, draws, some, device):
            for parts, scale in zip(found, scales, strict=True):
                parts.append(_summary((scale * logits).softmax(-1), levels, members))
    return [_joined(parts) for parts in found]


def calibration(
    every: Callable[[], Iterator[HasLogits]], draws: int, images: Tensor, labels: Tensor, device: torch.device
) -> tuple[float, Tensor | None]:
    """The logit scale that suits held-out images, see `most_probable_scale`.

    Args:
        every, draws, images, device: see `predictions`.
        labels: (n,).

    Returns:
        The scale, and the logits (draws, n, classes) if they fit in the buffer.

    Raises:
        InputError: if ``draws`` is below 1.
        TrainingError: if the predictions are not finite.
    """
    check_draws(draws)
    parts: list[Tensor] = []
    logits = torch.empty(0)
    for logits in logits_of_groups(every, draws, images, device):
        start = sum(part.shape[1] for part in parts)
        of_group = labels[start : start + logits.shape[1]]
        summed = scaled_log_likelihood(logits[0], of_group)
        for of_draw in logits[1:]:
            summed = summed.logaddexp(scaled_log_likelihood(of_draw, of_group))
        parts.append(summed)
    return most_probable_scale(torch.cat(parts, 1)), logits if len(parts) == 1 else None


def central_levels(interval: float, device: torch.device) -> Tensor:
    """Levels of the bounds of a central interval.

    Raises:
        InputError: if its mass is not within (0, 1).
    """
    check_fraction("interval", interval, "0.9")
    return torch.tensor([(1 - interval) / 2, (1 + interval) / 2], device=device)


def logits_of_groups(
    every: Callable[[], Iterator[HasLogits]], draws: int, images: Tensor, device: torch.device
) -> Iterator[Tensor]:
    """Logits (draws, group, classes) of one group of images after another."""
    start, group, buffer = 0, 1, None
    while start < len(images):
        for t, draw in enumerate(every()):
            if buffer is None:
                classes = draw.logits(images[:1].to(device)).shape[-1]
                group = min(len(images), max(1, BUFFER // (draws * classes)))
                buffer = torch.empty(draws, group, classes, device=device)
            for i, batch in enumerate(images[start : start + group].split(BATCH)):
                buffer[t, i * BATCH : i * BATCH + len(batch)] = draw.logits(batch.to(device))
            del draw
        assert buffer is not None
        yield buffer[:, : len(images) - start]
        start += group


def _summary(probs: Tensor, levels: Tensor, members: int) -> Prediction:
    mean = probs.mean(0)
    entropy = torch.special.entr(mean).sum(-1)
    expected = torch.special.entr(probs).sum(-1).mean(0)
    within = torch.zeros_like(entropy)  # the mean over members, weighted by their draws, of the entropy of each
    for member in range(min(members, len(probs))):
        own = probs[member::members]
        within += torch.special.entr(own.mean(0)).sum(-1) * (len(own) / len(probs))
    between = (entropy - within).clamp_min(0) if members > 1 else torch.zeros_like(entropy)
    lower, upper = probs.quantile(levels, 0)
    parts = mean, lower, upper, entropy, (entropy - expected).clamp_min(0), between
    return Prediction(**{name: part.cpu() for name, part in zip(_TENSORS, parts, strict=True)})


def _joined(parts: Sequence[Prediction]) -> Prediction:
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    return Prediction(**joined)
