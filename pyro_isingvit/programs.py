"""Functions that models and guides share: parameters outside Pyro's global store, and full precision."""

import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn


def announce_parameters(prefix: str, module: nn.Module) -> None:
    """Report every trainable parameter to `pyro.infer.SVI`, or any other handler that collects parameters.

    `pyro.module` would enter them in the global store, which gives the tensors of an older module of the
    same name to a newer one. This function sends the same messages and stores nothing.
    """
    if not any(isinstance(handler, TraceMessenger) and handler.param_only for handler in _PYRO_STACK):
        return  # no handler collects parameters, and forty messages a step take time
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            if not hasattr(parameter, "unconstrained"):
                parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
            full = f"{prefix}$$${name}"
            effectful(type="param")(lambda *_, value=parameter, **__: value)(
                full, parameter, constraint=constraints.real, name=full
            )


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which computations stay in float32 within `torch.autocast`."""
    return torch.autocast(device.type, enabled=False)
