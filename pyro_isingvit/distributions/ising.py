"""An Ising distribution over binary masks, exact for few sites and with Gibbs sampling for many.

References:
    Wainwright & Jordan, "Graphical Models, Exponential Families, and Variational Inference", 2008, section 5.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ..errors import InputError

EXACT_LIMIT = 16
"""Largest number of sites for which all states are enumerated."""


class Ising(TorchDistribution):
    r"""Binary sites :math:`x` with spins :math:`s = 2x - 1`:

    .. math:: p(x) \propto \exp\Big(\tfrac12 \sum_i h_i s_i + E(s)\Big)

    A site here is one binary variable. ``h`` is the log odds that it would have without interactions. `log_prob`,
    `entropy`, `log_normaliser`, `marginals`, `mean` and `variance` enumerate all states, and raise `InputError` for
    more than `EXACT_LIMIT` sites. `unnormalised`, `local_field`, `mean_field` and `gibbs` have no such limit; their
    cost is that of ``interaction``.

    Args:
        field: ``h``, shape ``(*batch, sites)``.
        interaction: ``E``, a function from spins ``(..., sites)`` to energies ``(...)`` that is linear in every spin.
        blocks: slices or indices that partition the sites such that there is no interaction inside a block; the sites
            of a block are updated at once. If omitted, every site is a block of its own.
        sweeps: number of Gibbs sweeps for each draw if there are too many sites to enumerate.
    """

    arg_constraints = {"field": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self,
        field: Tensor,
        interaction: Callable[[Tensor], Tensor],
        blocks: Sequence[slice | Tensor] | None = None,
        sweeps: int = 100,
        validate_args: bool | None = None,
    ) -> None:
        self.field, self.interaction, self.sweeps = field, interaction, sweeps
        self.blocks = [slice(i, i + 1) for i in range(field.shape[-1])] if blocks is None else list(blocks)
        super().__init__(field.shape[:-1], field.shape[-1:], validate_args=validate_args)

    @classmethod
    def pairwise(cls, field: Tensor, couplings: Tensor, **options: Any) -> Self:
        """Ising distribution whose ``E(s)`` is the sum over pairs i < j of ``couplings[i, j] * s_i * s_j``.

        Args:
            field: shape ``(*batch, sites)``.
            couplings: symmetric with a zero diagonal, shape ``(sites, sites)``.
            options: further arguments of `Ising`.

        Raises:
            InputError: if ``couplings`` is not symmetric or its diagonal is not zero.
        """
        if not torch.equal(couplings, couplings.mT) or couplings.diagonal().any():
            raise InputError(
                f"couplings of shape {tuple(couplings.shape)}: must be symmetric with a zero diagonal; "
                "use (a + a.T) / 2 and fill_diagonal_(0)"
            )
        return cls(field, lambda spins: (spins @ couplings * spins).sum(-1) / 2, **options)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Self:
        new = self._get_checked_instance(Ising, _instance)
        new.field = self.field.expand(torch.Size(batch_shape) + self.event_shape)
        new.interaction, new.blocks, new.sweeps = self.interaction, self.blocks, self.sweeps
        super(Ising, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def unnormalised(self, x: Tensor) -> Tensor:
        """Log probability of states without the normaliser: (..., sites) -> (...)."""
        spins = 2 * x - 1
        return (self.field * spins).sum(-1) / 2 + self.interaction(spins)

    def local_field(self, x: Tensor) -> Tensor:
        """Log odds of each site given all others: (..., sites) -> (..., sites).

        ``x`` holds states, or means, for which the interaction is evaluated at mean spins. Since the interaction is
        linear in each spin, its part of the log odds is exactly its gradient.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.interaction(2 * x - 1).sum()
            pull = torch.autograd.grad(energy, x)[0] if energy.requires_grad else torch.zeros_like(x)
        return self.field + pull

    def log_normaliser(self) -> Tensor:
        """log Z, shape ``batch_shape``, by enumeration."""
        return self._state_log_weights().logsumexp(0)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.unnormalised(value) - self.log_normaliser()

    def marginals(self) -> Tensor:
        """P(x_i = 1), shape ``batch_shape + (sites,)``, by enumeration."""
        return torch.einsum("k...,kn->...n", self._state_log_weights().softmax(0), self._states())

    @property
    def mean(self) -> Tensor:
        return self.marginals()

    @property
    def variance(self) -> Tensor:
        mean = self.marginals()
        return mean * (1 - mean)

    def entropy(self) -> Tensor:
        log_probs = self._state_log_weights().log_softmax(0)
        return -(log_probs.exp() * log_probs).sum(0)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Exact draws up to `EXACT_LIMIT` sites, else `sweeps` Gibbs sweeps from draws without interactions."""
        with torch.no_grad():
            if self.event_shape[0] <= EXACT_LIMIT:
                chosen = torch.distributions.Categorical(logits=self._state_log_weights().movedim(0, -1))
                return self._states()[chosen.sample(sample_shape)]
            start = torch.bernoulli(self.field.sigmoid().expand(self._extended_shape(sample_shape)))
        return self.gibbs(start, self.sweeps)

    def gibbs(self, x: Tensor, sweeps: int) -> Tensor:
        """States (..., sites) after ``sweeps`` sweeps of block Gibbs sampling from ``x``, which is not changed."""
        x = x.clone()
        for _ in range(sweeps):
            for block in self.blocks:
                x[..., block] = torch.bernoulli(self.local_field(x)[..., block].sigmoid())
        return x

    def chain(self, draws: int, thin: int = 3) -> Tensor:
        """Draws (draws, *batch, sites): exact and independent up to `EXACT_LIMIT` sites, else from one Gibbs chain.

        Args:
            draws: number of draws.
            thin: number of sweeps from one draw to the next. The first draw comes after `sweeps` sweeps.
        """
        if self.event_shape[0] <= EXACT_LIMIT:
            return self.sample(torch.Size([draws]))
        states = [self.sample()]
        while len(states) < draws:
            states.append(self.gibbs(states[-1], thin))
        return torch.stack(states)

    def mean_field(self, start: Tensor | None = None, iterations: int = 500, tolerance: float = 1e-6) -> Tensor:
        """A fixed point of the mean-field equations ``m = sigmoid(local_field(m))``, shape like ``field``.

        It is found by coordinate ascent on the mean-field bound, block by block.

        Args:
            start: probabilities to start from; those without interactions if omitted. Strong interactions have several
                fixed points, so try more than one start.
            iterations: largest number of sweeps over the blocks.
            tolerance: the ascent stops when no probability changes by this much in a sweep.
        """
        mean = (self.field.sigmoid() if start is None else start).detach().clone()
        for _ in range(iterations):
            before = mean.clone()
            for block in self.blocks:
                mean[..., block] = self.local_field(mean)[..., block].sigmoid().detach()
            if (mean - before).abs().max() < tolerance:
                break
        return mean

    def _states(self) -> Tensor:
        """All states, shape (2 ** sites, sites)."""
        sites = self.event_shape[0]
        if sites > EXACT_LIMIT:
            raise InputError(
                f"{sites} sites: enumeration stops at {EXACT_LIMIT}; use unnormalised() in a pyro.factor, "
                "mean_field() or gibbs()"
            )
        bits = torch.arange(2**sites, device=self.field.device).unsqueeze(-1) >> torch.arange(
            sites, device=self.field.device
        )
        return (bits & 1).to(self.field.dtype)

    def _state_log_weights(self) -> Tensor:
        """Unnormalised log probability of all states, shape (2 ** sites, *batch_shape)."""
        states = self._states()
        extra = (1,) * len(self.batch_shape)
        return self.unnormalised(states.view(len(states), *extra, -1).expand(-1, *self.batch_shape, -1))
