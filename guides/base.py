"""What a guide is: the methods that a variational family consists of, and the program around them."""

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.parameters import announce_parameters
from pyro_isingvit.sites import WeightSite


class Guide(nn.Module):
    """A variational family for the masks and weights of a model.

    Subclasses implement `mask` and `weight`; a structured family overrides `draw_masks`. All learned
    numbers are `nn.Parameter`s of the guide, none live in Pyro's global store.

    Args:
        model: whose posterior this approximates.

    Attributes:
        mask_shapes: shape of the masks of every site that has them, by site name.
    """

    watches = False
    """Whether a family learns from what `IsingViT.seen` keeps of each pass of training."""

    def __init__(self, model: IsingViT) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: its parameters are not the guide's
        self.mask_shapes: dict[str, torch.Size] = {}
        with poutine.block():
            for site in model.sites:
                base = model.prior.mask(site)
                if base is not None:
                    self.mask_shapes[site.name] = _checked_mask_shape(site, base)

    @property
    def model(self) -> IsingViT:
        """The model whose posterior this approximates."""
        return self._model[0]

    def mask(self, site: WeightSite) -> TorchDistributionMixin:
        """Distribution of the masks of a site: event shape ``mask_shapes[site.name]``."""
        raise NotImplementedError(f"{type(self).__name__} must implement mask(site)")

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        """Distribution of a weight given its mask (None for a site without): event shape ``site.shape``."""
        raise NotImplementedError(f"{type(self).__name__} must implement weight(site, mask)")

    def draw_masks(self) -> dict[str, Tensor]:
        """Sample the masks of all sites that have them, by site name."""
        return {
            site.name: pyro.sample(site.mask_name, self.mask(site))
            for site in self.model.sites
            if site.name in self.mask_shapes
        }

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro program. Takes the model's arguments and ignores them; returns the weights by site name."""
        announce_parameters("guide", self)
        model = self.model
        model.watched = self.watches and self.training
        masks = self.draw_masks() if model.fixed_masks is None else model.fixed_masks
        return {
            site.name: pyro.sample(site.weight_name, self.weight(site, masks.get(site.name))) for site in model.sites
        }

    @torch.no_grad()
    def inclusion_probabilities(self) -> dict[str, Tensor]:
        """Posterior probability of each mask being 1, by site name."""
        return {site.name: self.mask(site).mean for site in self.model.sites if site.name in self.mask_shapes}

    @torch.no_grad()
    def median_masks(self) -> dict[str, Tensor]:
        """Masks of the median-probability model: 1 where the inclusion probability is at least one half."""
        return {name: (p >= 0.5).to(p.dtype) for name, p in self.inclusion_probabilities().items()}

    @torch.no_grad()
    def mean_weights(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Posterior mean of every weight given masks, by site name."""
        return {site.name: self.weight(site, masks.get(site.name)).mean for site in self.model.sites}

    def hold_density(self, density: float) -> None:
        """From now on keep the mean inclusion probability at ``density``.

        Raises:
            InputError: if this family cannot, or the density is out of range.
        """
        raise InputError(f"target_density={density}: {type(self).__name__} cannot hold a density; use LikelihoodGuided")

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Trainable parameters as the groups of a torch optimiser."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": learning_rate}]


def initial_weights(model: IsingViT) -> dict[str, Tensor]:
    """A copy of the network's own weights by the key of their site: where guides start."""
    return {site.key: model.network.get_parameter(site.name).detach().clone() for site in model.sites}


def _checked_mask_shape(site: WeightSite, base: TorchDistributionMixin) -> torch.Size:
    shape = base.event_shape
    fits = len(shape) == len(site.shape) and all(m in (1, s) for m, s in zip(shape, site.shape, strict=True))
    if base.batch_shape or not fits:
        raise InputError(
            f"prior.mask at site {site.name!r} has batch shape {tuple(base.batch_shape)} and event shape "
            f"{tuple(shape)}; expected no batch shape and an event shape that broadcasts to {site.shape} "
            "with as many dimensions; use to_event"
        )
    return shape
