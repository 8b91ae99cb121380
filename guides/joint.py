"""All masks and weights of a mean-field family in one draw, with their divergence from the prior in closed form.

A training step then takes a few passes over one vector, in place of dozens of small operations for each site.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_isingvit.distributions import Gaussian, SpikeAndSlab, StraightThroughBernoulli
from pyro_isingvit.models.ising_vit import Distributions
from pyro_isingvit.models.priors import Interaction


class Layout:
    """Where the elements of several tensors lie in one vector.

    Args:
        shapes: shapes of the tensors.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.sizes = [shape.numel() for shape in self.shapes]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """One vector of tensors that broadcast to the shapes."""
        first = tensors[0]
        if not first.dim() and all(tensor is first for tensor in tensors):
            return first.expand(sum(self.sizes))
        return torch.cat(
            [
                tensor.expand(shape).reshape(-1) if tensor.dim() else tensor.expand(size)
                for tensor, shape, size in zip(tensors, self.shapes, self.sizes, strict=True)
            ]
        )

    def split(self, vector: Tensor) -> list[Tensor]:
        """The tensors whose elements a vector has; the reverse of `join`."""
        return [part.view(shape) for part, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]


class Masks:
    """Independent Bernoulli masks.

    Args:
        logits: log odds of the masks, by site name.
    """

    def __init__(self, logits: Mapping[str, Tensor]) -> None:
        self.names, self.layout = list(logits), Layout([logit.shape for logit in logits.values()])
        flat = self.layout.join(list(logits.values()))
        self.probs = flat.sigmoid()
        self.negative_entropy = (self.probs * flat - F.softplus(flat)).sum()
        self.kept = torch.stack([part.sum() for part in self.probs.split(self.layout.sizes)])
        self.counts = self.kept.new_tensor(self.layout.sizes)
        self._energy: tuple[Interaction, Tensor] | None = None
        self._divergence: Tensor | None = None

    def draw(self) -> Tensor:
        """A draw of all masks as one vector, exactly 0 or 1, with the straight-through gradient."""
        with torch.no_grad():
            masks = torch.rand_like(self.probs).lt_(self.probs)  # several times faster than torch.bernoulli
        return masks + (self.probs - self.probs.detach()) if self.probs.requires_grad else masks

    def by_site(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector over all masks, by site name."""
        return dict(zip(self.names, self.layout.split(vector), strict=True))

    def expected_energy(self, interaction: Interaction) -> Tensor:
        """Expectation of an interaction that is linear in each mask; computed once, unless it has a gradient."""
        if self._energy is not None and self._energy[0] is interaction:
            return self._energy[1]
        energy = interaction.energy(self.by_site(self.probs))
        if _can_be_kept(energy):
            self._energy = interaction, energy
        return energy

    def divergence(self, priors: Callable[[], Sequence[Any]]) -> Tensor:
        """Divergence from the prior of each site, in nats; computed once, unless it has a gradient."""
        if self._divergence is not None:
            return self._divergence
        odds = [prior.given for prior in priors()]
        if any(each.dim() for each in odds):
            flat = self.layout.join(odds)
            divergence = self.negative_entropy - self.probs @ flat + F.softplus(flat).sum()
        else:
            each = torch.stack(odds)
            divergence = self.negative_entropy - self.kept @ each + self.counts @ F.softplus(each)
        if _can_be_kept(divergence):
            self._divergence = divergence
        return divergence


class Scales:
    """Scales of all weights.

    Args:
        log_scales: their logarithms, of the weights of each site.
        layout: layout of the weights.
    """

    def __init__(self, log_scales: Sequence[Tensor], layout: Layout) -> None:
        self.layout, self.log_scales = layout, log_scales
        self.scale = layout.join(log_scales).exp()
        self._against: tuple[Tensor, Tensor, Tensor] | None = None

    def against(self, priors: Callable[[], Sequence[Gaussian]]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and precision of the prior of each weight, and the divergence from it at that mean.

        They are computed once, unless they have gradients.
        """
        if self._against is not None:
            return self._against
        locs, log_scales = zip(*(prior.given for prior in priors()), strict=True)
        if all(each.dim() == 0 for each in log_scales):
            precisions = (-2 * torch.stack(log_scales)).exp().unbind()
        else:
            precisions = tuple((-2 * each).exp() for each in log_scales)
        loc, log_scale, precision = (self.layout.join(each) for each in (locs, log_scales, precisions))
        rest = torch.addcmul(
            log_scale - self.layout.join(self.log_scales) - 0.5, self.scale.square(), precision, value=0.5
        )
        if _can_be_kept(loc, rest):
            self._against = loc, precision, rest
        return loc, precision, rest


class Weights:
    """A draw of independent weights given masks: Gaussian where the mask is 1, else exactly zero.

    Args:
        locs: means of the weights of each site.
        scales: their scales.
        mask: mask of each weight, as one vector; 1 for a site without masks.
        layout: layout of the weights.
    """

    def __init__(self, locs: Sequence[Tensor], scales: Scales, mask: Tensor, layout: Layout) -> None:
        self.layout, self.scales, self.mask, self.loc = layout, scales, mask, layout.join(locs)

    def draw(self) -> list[Tensor]:
        """The weights of each site."""
        slab = torch.addcmul(self.loc, self.scales.scale, torch.randn_like(self.loc))
        return self.layout.split(self.mask * slab)

    def divergence(self, priors: Callable[[], Sequence[Gaussian]]) -> Tensor:
        """Divergence of the weights that are kept from the prior of each site, in nats."""
        loc, precision, rest = self.scales.against(priors)
        return self.mask @ rest + 0.5 * _SumOfSquares.apply(self.loc - loc, self.mask * precision)


@dataclass(frozen=True)
class JointDraw:
    """A draw of all masks and weights of a model; see `pyro_isingvit.models.ising_vit.JointDraw`.

    Attributes:
        masks, weights: by site name.
        of_masks: the distribution of the masks; None if they are fixed, or there are none.
        of_weights: the distribution of the weights given these masks.
    """

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    of_masks: Masks | None
    of_weights: Weights

    def expected_energy(self, interaction: Interaction) -> Tensor:
        assert self.of_masks is not None
        return self.of_masks.expected_energy(interaction)

    def divergence(self, bases: Distributions, priors: Distributions) -> Tensor:
        total = self.of_weights.divergence(lambda: [_slab(prior) for prior in priors()])
        return total if self.of_masks is None else total + self.of_masks.divergence(bases)


@dataclass(frozen=True)
class PointDraw:
    """Weights that are point estimates, without masks. The divergence is their negative log density under the prior.

    Attributes:
        masks, weights: by site name; masks that are fixed have been applied.
    """

    masks: dict[str, Tensor]
    weights: dict[str, Tensor]

    def expected_energy(self, interaction: Interaction) -> Tensor:
        raise NotImplementedError("a point estimate has no masks of its own")

    def divergence(self, bases: Distributions, priors: Distributions) -> Tensor:
        each = zip(priors(), self.weights.values(), strict=True)
        return -torch.stack([prior.log_prob(weight) for prior, weight in each]).sum()


def has_closed_form(base: TorchDistributionMixin | None, prior: TorchDistributionMixin) -> bool:
    """Whether `JointDraw.divergence` is known for a site with this base measure (None without masks) and prior."""
    masked = type(base) is StraightThroughBernoulli and type(prior) is SpikeAndSlab and prior.spike is None
    return (masked or base is None) and type(_slab(prior)) is Gaussian


def _can_be_kept(*results: Tensor) -> bool:
    """Whether later draws may use these results: they have no gradient, and would have one if they depended on any."""
    return torch.is_grad_enabled() and not any(result.requires_grad for result in results)


def _slab(prior: Any) -> Any:
    """The prior of a weight that is kept, element by element."""
    return prior.slab if isinstance(prior, SpikeAndSlab) else getattr(prior, "base_dist", None)


class _SumOfSquares(torch.autograd.Function):
    """``sum(weight * x ** 2)``; saves most of the passes that a gradient in x alone would take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        product = x * weight
        ctx.save_for_backward(x, product)
        return x @ product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, product = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        return (2 * grad * product if of_x else None), (grad * x.square() if of_weight else None)
