"""`TraceGraph_ELBO` as a differentiable loss, with closed forms."""

from typing import Any

import pyro.infer
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..guides import Guide


class TraceGraph_ELBO(pyro.infer.TraceGraph_ELBO):
    """Pyro's `TraceGraph_ELBO`, plus `differentiable_loss`, and closed forms of divergences.

    With `differentiable_loss`, ``TraceGraph_ELBO()(model, guide)`` is an `nn.Module` whose call returns the negative
    ELBO, and whose ``backward()`` gives exactly the gradients of ``loss_and_grads``, so that torch's optimisers,
    schedulers, gradient clipping and distributed training can be used.

    Where a guide draws all masks and weights at once (`Guide.draw_jointly`), their divergence from the prior is
    computed in closed form and enters as one factor, in place of the log densities of their sample sites. Neither the
    expectation of the loss nor that of its gradient changes. With Pyro's validation enabled, all sites are sampled and
    checked one by one.
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO, with the gradient of the surrogate loss."""
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        return surrogate - surrogate.detach() - torch.as_tensor(elbo).detach()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        joint = isinstance(guide, Guide) and guide.model is model and not is_validation_enabled()
        draw = guide.draw_jointly() if joint else None
        if draw is not None:
            trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, draw=draw, **kwargs))
            trace.compute_log_prob()
            return trace, Trace()
        # Provenance tells which costs a draw influences. Pyro's own method also adds every pair of sites as an
        # edge of the trace, which nothing reads and which costs as much as drawing all masks.
        with TrackNonReparam():
            return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
