"""Masks drawn from the output backwards, each layer given those behind it.

References:
    Salem & Kim, "Likelihood-guided Regularization in Attention Based Models", arXiv 2511.13221, 2025.
    Hoffman & Blei, "Structured Stochastic Variational Inference", AISTATS 2015.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_isingvit.distributions import StraightThroughBernoulli
from pyro_isingvit.errors import InputError
from pyro_isingvit.interactions import CouplingGraph
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.network import LAYER, WeightSite

from .mean_field import MeanField

MARGINAL_DRAWS = 32
"""Number of draws over which the conditional inclusion probabilities are averaged."""


class BackwardIsing(MeanField):
    r"""Masks that depend on each other through the prior's couplings, from the output backwards.

    .. math:: \mathrm{logit}\, q(m = 1 \mid \text{behind}) = \mathrm{logit} + \sum_c 2 \kappa_c \bar s_c

    with :math:`\bar s_c` the mean spin, at the shared unit, of the weights behind (nearer to the output) in coupling c,
    and one learned strength :math:`\kappa_c` for each coupling. With all strengths at zero this is `MeanField`.

    Args:
        model: the model whose posterior this approximates.
        couplings: the graph that says which masks depend on which; that of the prior if None.
        initial_strength: initial strength of every coupling.
        options: arguments of `MeanField`; the strengths have the learning rate of the logits.

    Raises:
        InputError: if a value is out of range, there are no couplings, they form a cycle, or the graph's sites are not
            those of the prior's masks.
    """

    def __init__(
        self,
        model: IsingViT,
        couplings: CouplingGraph | None = None,
        initial_strength: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        graph = getattr(model.prior, "couplings", None) if couplings is None else couplings
        if not isinstance(graph, CouplingGraph) or not graph.couplings:
            raise InputError(f"prior={type(model.prior).__name__} has no couplings to mirror; pass couplings=")
        loose = sorted(self.mask_shapes.keys() - graph.sites.keys())
        if loose:
            raise InputError(f"couplings: no site {loose}, which have masks too; make the graph over all sites")
        for name, site in graph.sites.items():
            if name not in self.mask_shapes or self.mask_shapes[name].numel() != site.numel:
                raise InputError(f"couplings: site {name!r} of shape {site.shape} is not that of the prior's masks")
        self.couplings, self.initial_strength = graph, initial_strength
        self._order = graph.backward_order()
        self._sites = {site.name: site for site in model.sites}
        self._behind = {name: {c.second for c in graph.couplings if c.first == name} for name in graph.sites}
        self.strength = nn.Parameter(
            torch.full((len(graph.couplings),), initial_strength, device=model.prior.zero.device)
        )

    def draw_masks(self) -> dict[str, Tensor]:
        masks = {}
        for name, (drawn, logits) in self._backward().items():
            site = self._sites[name]
            shape = self.logit[site.key].shape
            fn = _Drawn(drawn.reshape(shape), logits.reshape(shape))
            masks[name] = self.model.sample(site, site.mask_name, fn)
        return masks

    @torch.no_grad()
    def inclusion_probabilities(self) -> dict[str, Tensor]:
        draws: list[dict[str, Tensor]] = []
        device = self.strength.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            for _ in range(MARGINAL_DRAWS):
                draws.append({name: logits.sigmoid() for name, (_, logits) in self._backward().items()})
        return {
            name: torch.stack([probs[name] for probs in draws]).mean(0).reshape(shape)
            for name, shape in self.mask_shapes.items()
        }

    def mask_log_prob(self, masks: Mapping[str, Tensor]) -> Tensor:
        at_units = {name: masks[name].reshape(site.shape) for name, site in self.couplings.sites.items()}
        logits = self._own_logits()
        for index, coupling, pull in self.couplings.backward_pulls(at_units):
            logits[coupling.first] = logits[coupling.first] + self.strength[index] * pull
        return torch.stack(
            [StraightThroughBernoulli(logits=logits[n], event_dim=m.dim()).log_prob(m) for n, m in at_units.items()]
        ).sum()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        weights, masks = super().parameter_groups(learning_rate)
        weights["params"] = [p for p in weights["params"] if p is not self.strength]
        masks["params"] = [*masks["params"], self.strength]
        return [weights, masks]

    def _backward(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A draw of all masks, those behind first, and its conditional log odds; by site name in the graph's shapes.

        Masks are drawn block by block, since those of one block depend on those of the next.
        """
        sites = self.couplings.sites
        logits = {name: list(_blocks(logit, sites[name])) for name, logit in self._own_logits().items()}
        drawn = {name: [torch.zeros_like(block) for block in blocks] for name, blocks in logits.items()}
        for name, layer in self._order:
            site, block = sites[name], layer or 0
            behind = {other: _joined(drawn[other], sites[other]) for other in self._behind[name]}
            for index, _, pull in self.couplings.backward_pulls(behind, first=name):
                whole = _blocks(pull.expand(site.shape), site)
                logits[name][block] = logits[name][block] + self.strength[index] * whole[block]
            drawn[name][block] = StraightThroughBernoulli(logits=logits[name][block]).rsample()
        return {name: (_joined(drawn[name], site), _joined(logits[name], site)) for name, site in sites.items()}

    def _own_logits(self) -> dict[str, Tensor]:
        """Log odds without the contribution of the masks behind, by site name in the graph's shapes."""
        return {n: self.logit[self._sites[n].key].reshape(site.shape) for n, site in self.couplings.sites.items()}


class _Drawn(StraightThroughBernoulli):
    """The distribution of a draw that was already made, block by block."""

    def __init__(self, draw: Tensor, logits: Tensor) -> None:
        super().__init__(logits=logits, event_dim=logits.dim())
        self.draw = draw

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.draw


def _blocks(whole: Tensor, site: WeightSite) -> tuple[Tensor, ...]:
    return whole.unbind(site.axis(LAYER)) if LAYER in site.dims else (whole,)


def _joined(blocks: list[Tensor], site: WeightSite) -> Tensor:
    return torch.stack(blocks, len(site.dims) + site.axis(LAYER)) if LAYER in site.dims else blocks[0]
