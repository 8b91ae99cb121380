"""The gain from keeping each weight, from images that the weights were not fitted to.

References:
    Stone, "Cross-Validatory Choice and Assessment of Statistical Predictions", JRSS B 1974.
    LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.errors import InputError, check_count, kind_of
from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import WeightSite
from pyro_isingvit.network.stem import as_floats

from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class HeldOut(SquaredGradient):
    r"""Slope and curvature of the log-likelihood of held-out images, for the gain; those of training for the scales.

    To second order about the draws of the guide, the held-out log-likelihood of a weight w is
    :math:`L(w) = a w - F w^2 / 2`, as for as many images as there are in training. Its slope at a draw is
    :math:`a - F w`, so that :math:`a = \bar L' + F \bar w` follows from the mean slope and the mean of the draws, in
    some of which the weight is dropped. Keeping the weight, with mean :math:`\mu` and variance :math:`s^2`, gains
    :math:`a \mu - F (\mu^2 + s^2) / 2`. A weight that fits noise has a near 0, and earns less than nothing. The slope
    of the training images, which is zero where training ends, says nothing of the kind.

    Each update of the masks takes one batch of the held-out images; averages are exponential over these. With n of them
    and N training images, the gain of a weight has a standard error of at least :math:`\mu \sqrt{F N / n}`.

    Args:
        model, decay: see `Estimator`; the decay of what is held out is per update of the masks.
        held_out: images (n, channels, height, width) and their labels, which training does not use. Do not calibrate or
            compare on them.
        batch: number of held-out images of each update, drawn with replacement, in two halves whose difference gives
            the curvature.

    Raises:
        InputError: if ``held_out`` is no such pair, there is no image, or ``batch`` is below 1.

    Example:
        >>> from functools import partial  # doctest: +SKIP
        >>> estimator = partial(HeldOut, held_out=(other.images, other.labels))  # doctest: +SKIP
        >>> guide = LikelihoodGuided(model, estimator=estimator)  # doctest: +SKIP
    """

    def __init__(self, model: IsingViT, held_out: tuple[Tensor, Tensor], decay: float = 0.98, batch: int = 50) -> None:
        super().__init__(model, decay)
        if not isinstance(held_out, tuple) or [type(part) for part in held_out] != [Tensor, Tensor]:
            raise InputError(f"held_out={kind_of(held_out)}: give a pair of tensors, (other.images, other.labels)")
        images, labels = held_out
        if not len(images) or len(labels) != len(images):
            raise InputError(
                f"held_out: images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; give one "
                "label for each of at least one image"
            )
        check_count("batch", batch, 1_000_000)
        self.held_out, self.batch = held_out, batch
        self.slopes, self.curvatures, self.entered = self.average(), self.average(), self.average()

    def settings(self) -> dict[str, Any]:
        return {"decay": self.decay, "batch": self.batch, "held_out": f"{len(self.held_out[0])} images"}

    def prepare(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        model, (images, labels) = guide.model, self.held_out
        half = -(-self.batch // 2)
        chosen = torch.randint(len(images), (2 * half,))
        masks, slabs = guide.sample_parts()
        drawn = {name: slab * masks.get(name, 1.0) for name, slab in slabs.items()}
        with torch.enable_grad():
            weights = {name: weight.requires_grad_() for name, weight in drawn.items()}
            outputs = model.logits(as_floats(images[chosen].to(self._device)), weights)
            each = model.likelihood.log_prob(outputs, labels[chosen].to(self._device)).view(2, half)
            entering = [weights[site.name] for site in self.sites]
            first, second = (torch.autograd.grad(mean, entering, retain_graph=True) for mean in each.mean(1))
        self.slopes.take_in(torch._foreach_add(first, second), seen.num_data / 2)
        # Half the square of a difference is the variance of each under this draw: N B / 2 times that is a curvature.
        self.curvatures.take_in_squares(torch._foreach_sub(first, second), seen.num_data * half / 2)
        self.entered.take_in([drawn[site.name].detach() for site in self.sites])

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        """The gain on held-out images; their slope takes the place of the one given."""
        curvature = self.curvatures.of(site)
        linear = self.slopes.of(site) + curvature * self.entered.of(site)
        return slab.mean * linear - 0.5 * (slab.mean.square() + slab.variance) * curvature
