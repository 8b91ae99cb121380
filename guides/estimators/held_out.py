"""The gain from keeping each weight, from images that the weights were not fitted to.

References:
    Stone, "Cross-Validatory Choice and Assessment of Statistical Predictions", JRSS B 1974.
    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import WeightSite

from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class HeldOut(SquaredGradient):
    r"""Slope and curvature of the log-likelihood of held-out images, for the gain; those of training for the scales.

    To second order, keeping a weight of mean :math:`\mu` and variance :math:`s^2` gains
    :math:`\mu\,L' + (\mu^2 - s^2) F / 2`, with L' and F the slope and curvature of the held-out log-likelihood at the
    draws of the guide, as for as many images as there are in training. A weight that fits noise has a slope that pulls
    it back, :math:`L' \approx -\mu F`, so that it earns less than nothing. The slope of the training images, which is
    zero where training ends, says nothing of the kind.

    Each update of the masks takes one batch of the held-out images; averages are exponential over these. With n of them
    and N training images, the gain of a weight has a standard error of at least :math:`\mu \sqrt{F N / n}`.

    Args:
        model, decay: see `Estimator`; the decay of what is held out is per update of the masks.
        held_out: images (n, channels, height, width) and labels (n,) that training does not use. Do not calibrate or
            compare on them.
        batch: number of held-out images of each update.

    Raises:
        InputError: if there are no images, or not one label for each.

    Example:
        >>> from functools import partial  # doctest: +SKIP
        >>> estimator = partial(HeldOut, held_out=(other.images, other.labels))  # doctest: +SKIP
        >>> guide = LikelihoodGuided(model, estimator=estimator)  # doctest: +SKIP
    """

    def __init__(self, model: IsingViT, held_out: tuple[Tensor, Tensor], decay: float = 0.98, batch: int = 50) -> None:
        super().__init__(model, decay)
        images, labels = held_out
        if not len(images) or labels.shape != images.shape[:1]:
            raise InputError(
                f"held_out: images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; give one "
                "label for each of at least one image"
            )
        if batch < 1:
            raise InputError(f"batch={batch}: must be at least 1")
        self.held_out, self.batch = held_out, min(batch, len(images))
        self.slopes, self.held_squares = self.average(), self.average()
        self.num_data = 1.0  # N of the last update

    def settings(self) -> dict[str, Any]:
        return {"decay": self.decay, "batch": self.batch, "held_out": f"{len(self.held_out[0])} images"}

    def prepare(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        model, (images, labels) = guide.model, self.held_out
        chosen = torch.randperm(len(images))[: self.batch]
        masks, slabs = guide.sample_parts()
        weights = {name: slab * masks.get(name, 1.0) for name, slab in slabs.items()}
        with torch.enable_grad():
            for weight in weights.values():
                weight.requires_grad_()
            logits = model.logits(images[chosen].to(self._device), weights)
            mean = model.likelihood.log_prob(logits, labels[chosen].to(self._device)).mean()
            slopes = torch.autograd.grad(mean, [weights[site.name] for site in self.sites])
        self.num_data = float(seen.num_data)
        self.slopes.take_in(slopes, seen.num_data)
        self.held_squares.take_in_squares(slopes, seen.num_data * self.batch)

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        """The gain on held-out images; their slope takes the place of the one given."""
        own = self.slopes.of(site)
        # N B Var(g) for the mean gradient g of a batch, which is not zero here
        curvature = (self.held_squares.of(site) - own.square() * self.batch / self.num_data).clamp_min(0)
        return slab.mean * own + 0.5 * (slab.mean.square() - slab.variance) * curvature
