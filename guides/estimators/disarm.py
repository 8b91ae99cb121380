"""Unbiased gradients from antithetic pairs of masks.

References:
    Dong, Mnih & Tucker, "DisARM: An Antithetic Gradient Estimator for Binary Latent Variables", NeurIPS 2020.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_isingvit.models.ising_vit import IsingViT, Pass
from pyro_isingvit.network import WeightSite

from .squared_gradient import SquaredGradient

if TYPE_CHECKING:
    from pyro_isingvit.guides.likelihood_guided import LikelihoodGuided


class DisARM(SquaredGradient):
    """Unbiased gain, from an antithetic pair of draws of all masks with the same draw of the slabs.

    It takes two extra forward passes for each batch. Its variance grows with the number of masks.
    """

    def __init__(self, model: IsingViT, decay: float = 0.98) -> None:
        super().__init__(model, decay)
        self.scores = self.average()

    def update(self, guide: "LikelihoodGuided", seen: Pass) -> None:
        super().update(guide, seen)
        model, scale = guide.model, seen.num_data / len(seen.images)
        assert seen.labels is not None
        _, slabs = guide.sample_parts()
        logits = {site.name: guide.logit[site.key] for site in self.sites if site.name in guide.mask_shapes}
        uniforms = {name: torch.rand_like(logit) for name, logit in logits.items()}
        pair = [
            {name: (flip(u) < logits[name].sigmoid()).to(u.dtype) for name, u in uniforms.items()}
            for flip in (lambda u: u, lambda u: 1 - u)
        ]
        log_likelihoods = []
        for masks in pair:
            scores = model.logits(seen.images, {name: slab * masks.get(name, 1.0) for name, slab in slabs.items()})
            log_likelihoods.append(model.likelihood.log_prob(scores.float(), seen.labels).sum())
        difference = 0.5 * (log_likelihoods[0] - log_likelihoods[1])
        news = []
        for site in self.sites:
            if site.name not in logits:
                news.append(torch.zeros(site.shape, device=difference.device))
                continue
            logit, (first, second) = logits[site.name], (masks[site.name] for masks in pair)
            slope = difference * (first - second) * logit.abs().sigmoid()
            share = logit.numel() / site.numel  # of the gain of a mask that several weights share
            news.append((slope * share / (logit.sigmoid() * (-logit).sigmoid())).expand(site.shape))
        self.scores.take_in(news, scale)

    def pull(self, site: WeightSite, slab: Distribution, slope: Tensor | float = 0.0) -> Tensor:
        return self.scores.of(site)
