"""`TraceGraph_ELBO` as a differentiable loss."""

from typing import Any

import pyro.infer
import torch
from pyro.infer.enum import get_importance_trace
from pyro.infer.tracegraph_elbo import TrackNonReparam
from torch import Tensor


class TraceGraph_ELBO(pyro.infer.TraceGraph_ELBO):
    """Pyro's `TraceGraph_ELBO`, plus `differentiable_loss`.

    With it, ``TraceGraph_ELBO()(model, guide)`` is an `nn.Module` whose call returns the negative ELBO, and whose
    ``backward()`` gives exactly the gradients of ``loss_and_grads``, so that torch's optimisers, schedulers, gradient
    clipping and distributed training can be used.
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO, with the gradient of the surrogate loss."""
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        return surrogate - surrogate.detach() - torch.as_tensor(elbo).detach()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        # Provenance tells which costs a draw influences. Pyro's own method also adds every pair of sites as an
        # edge of the trace, which nothing reads and which costs as much as drawing all masks.
        with TrackNonReparam():
            return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
