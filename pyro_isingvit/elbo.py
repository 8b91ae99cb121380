"""`TraceGraph_ELBO` as a differentiable loss."""

from typing import Any

import pyro.infer
import torch
from torch import Tensor


class TraceGraph_ELBO(pyro.infer.TraceGraph_ELBO):
    """Pyro's `TraceGraph_ELBO`, plus `differentiable_loss`.

    So ``TraceGraph_ELBO()(model, guide)`` is an `nn.Module` whose call returns the negative ELBO, and whose
    ``backward()`` gives exactly the gradients of ``loss_and_grads``: optimisers, schedulers, clipping and
    distributed training of torch all apply.
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO, with the gradient of the surrogate loss."""
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        return surrogate - surrogate.detach() - torch.as_tensor(elbo).detach()
