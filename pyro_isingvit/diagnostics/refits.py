"""Fits to images that are changed at random, and what they say of the masks of a site; `select` makes them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data import Images
from ..errors import InputError, kind_of
from ..posterior import Posterior

Refit = Callable[[Images], Posterior]
"""A function that fits a posterior, with masks like those of another, to images."""


@dataclass(frozen=True)
class Refits:
    """Fits to images that are changed at random."""

    refit: Refit
    train: Images
    site: str
    seed: int
    shape: tuple[int, ...]

    def to_shadows(self, features: int, fits: int) -> Tensor:
        """Log odds (fits, 2, features) of input features and of their shadows."""
        generator, every = self._generator(), []
        for _ in range(fits):
            order = torch.randperm(len(self.train), generator=generator)
            shadows = self.train.images[order.to(self.train.images.device)]
            both = replace(self.train, images=torch.cat([self.train.images, shadows], 1), source="")
            every.append(self._log_odds(both, (1, 2 * features)).view(2, -1))
        return torch.stack(every)

    def to_permuted_labels(self, fits: int) -> Tensor:
        """Log odds (all masks of all fits,) where no label depends on its image."""
        generator, every = self._generator(), []
        for _ in range(fits):
            order = torch.randperm(len(self.train), generator=generator).to(self.train.labels.device)
            every.append(self._log_odds(replace(self.train, labels=self.train.labels[order], source="")))
        return torch.cat(every)

    def to_halves(self, fits: int) -> Tensor:
        """Inclusion probabilities (fits, masks) of fits to halves of the images."""
        every = [at_site(self._fitted(half), self.site) for half in self._halves(fits)]
        return torch.stack([self._checked(probs).flatten() for probs in every])

    def _halves(self, fits: int) -> Iterator[Images]:
        generator = self._generator()
        for _ in range(fits // 2):
            order = torch.randperm(len(self.train), generator=generator).to(self.train.labels.device)
            half = len(order) // 2
            yield self.train[order[:half]]
            yield self.train[order[half : 2 * half]]

    def _log_odds(self, images: Images, shape: tuple[int, ...] | None = None) -> Tensor:
        return self._checked(log_odds(self._fitted(images), self.site), shape).flatten()

    def _checked(self, masks: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        wanted = self.shape if shape is None else shape
        if tuple(masks.shape) != wanted:
            channels = self.train.shape[0] * (1 if shape is None else 2)
            raise InputError(
                f"refit: masks of {self.site} of shape {tuple(masks.shape)}, not {wanted}; build the network and prior "
                f"of the posterior, for images.shape[0]={channels} channels"
            )
        return masks

    def _fitted(self, images: Images) -> Posterior:
        found = self.refit(images)
        if not isinstance(found, Posterior):
            raise InputError(f"refit: returned {kind_of(found)}; return a Posterior, as fit(...).posterior")
        return found

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def at_site(posterior: Posterior, site: str) -> Tensor:
    """Inclusion probabilities of the masks of a site, on the CPU."""
    every = posterior.inclusion_probabilities()
    if site not in every:
        raise InputError(f"site={site!r}: the posterior has masks at {list(every)}")
    return every[site].cpu().double()


def log_odds(posterior: Posterior, site: str) -> Tensor:
    """Log odds of the masks of a site, in their shape; for a mixture, their mean over members."""
    at_site(posterior, site)
    every = [guide.inclusion_log_odds()[site].cpu().double() for guide in posterior.guides]
    return torch.stack(every).mean(0)
