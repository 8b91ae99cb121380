r"""Correlated masks: a Gaussian copula of low rank.

References:
    Ranganath, Tran & Blei, "Hierarchical Variational Models", ICML 2016.
    Tran, Blei & Airoldi, "Copula Variational Inference", NeurIPS 2015.
"""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from pyro_isingvit.distributions import StraightThroughBernoulli
from pyro_isingvit.errors import InputError, check_count
from pyro_isingvit.models.ising_vit import IsingViT

from .mean_field import MeanField

BOUND = 14.0
"""Largest absolute log odds in the copula: beyond, a float32 probability rounds to 1, and its quantile is infinite."""


class LowRank(MeanField):
    r"""Masks that are correlated by a Gaussian copula of rank r: a mask is 1 where its Gaussian is positive.

    .. math:: m_i = [\,a_i + u_i^\top z + \epsilon_i > 0\,], \quad z \sim N(0, I_r), \; \epsilon_i \sim N(0, 1)

    with :math:`a_i` such that the inclusion probability is exactly :math:`\sigma(\mathrm{logit}_i)`. The probability
    of the masks alone is intractable. The ELBO is therefore that of masks and z together, where the model is extended
    by a learned linear Gaussian :math:`r(z \mid m)` (a hierarchical variational model). It is a lower bound for any
    such Gaussian.

    Args:
        model: the model whose posterior this approximates.
        rank: r, at least 1.
        initial_factor: scale of the random initial u; with zero this is `MeanField`, and training does not change that.
        options: arguments of `MeanField`; the copula has the learning rate of the logits.

    Raises:
        InputError: if a value is out of range, or the model has no masks.
    """

    def __init__(self, model: IsingViT, rank: int = 4, initial_factor: float = 0.1, **options: Any) -> None:
        super().__init__(model, **options)
        check_count("rank", rank, 1000)
        if not self.mask_shapes:
            raise InputError(f"prior={type(model.prior).__name__} has no masks to correlate; use MeanField")
        self.rank, self.initial_factor, device = rank, initial_factor, model.prior.zero.device
        shapes = {site.key: self.mask_shapes[site.name] for site in model.sites if site.name in self.mask_shapes}
        self.factor = nn.ParameterDict(
            {
                key: nn.Parameter(initial_factor * torch.randn(rank, *shape, device=device))
                for key, shape in shapes.items()
            }
        )
        self.readout = nn.ParameterDict(
            {key: nn.Parameter(torch.zeros(rank, *shape, device=device)) for key, shape in shapes.items()}
        )
        self.readout_log_scale = nn.Parameter(torch.zeros(rank, device=device))

    def draw_masks(self) -> dict[str, Tensor]:
        normal = Normal(torch.zeros_like(self.readout_log_scale), 1.0).to_event(1)
        z = pyro.sample("copula", normal, infer={"is_auxiliary": True})
        masks = {}
        recovered: Tensor | float = 0.0
        for site in self.model.sites:
            if site.name not in self.mask_shapes:
                continue
            factor, probs = self.factor[site.key], self.logit[site.key].clamp(-BOUND, BOUND).sigmoid()
            threshold = torch.special.ndtri(probs) * (1 + factor.square().sum(0)).sqrt()
            given_z = torch.special.ndtr(threshold + torch.tensordot(z, factor, 1))
            margin = torch.finfo(probs.dtype).eps
            fn = StraightThroughBernoulli(given_z.clamp(margin, 1 - margin), event_dim=probs.dim())
            masks[site.name] = self.model.sample(site, site.mask_name, fn)
            surprise = (masks[site.name] - probs).flatten()
            recovered = recovered + self.readout[site.key].flatten(1) @ surprise
        reverse = Normal(recovered, self.readout_log_scale.exp()).to_event(1)
        pyro.factor("copula.reverse", -reverse.log_prob(z), has_rsample=True)
        return masks

    def mask_log_prob(self, masks: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError("the masks of a Gaussian copula have no density in closed form")

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        weights, masks = super().parameter_groups(learning_rate)
        copula = [*self.factor.values(), *self.readout.values(), self.readout_log_scale]
        known = {id(p) for p in copula}
        weights["params"] = [p for p in weights["params"] if id(p) not in known]
        masks["params"] = [*masks["params"], *copula]
        return [weights, masks]
