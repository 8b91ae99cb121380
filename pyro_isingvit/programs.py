"""What programs share: parameters outside Pyro's global store, latent variables that several parts sample, full
precision, memory that is kept."""

import ctypes
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from .errors import InputError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""

_LARGEST = 32 * 2**20
"""The largest ``M_MMAP_THRESHOLD`` that glibc accepts, in bytes. It raises its threshold up to this by itself, and that
for returning memory to twice as much."""


def announce_parameters(prefix: str, module: nn.Module) -> None:
    """Report every trainable parameter to `pyro.infer.SVI`, or any other handler that collects parameters.

    `pyro.module` would enter them in the global store, which gives the tensors of an older module of the
    same name to a newer one. This function sends the same messages and stores nothing.
    """
    if not any(isinstance(handler, TraceMessenger) and handler.param_only for handler in _PYRO_STACK):
        return  # no handler collects parameters, and forty messages a step take time
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            if getattr(parameter, "unconstrained", None) is None:
                parameter.unconstrained = _Itself(parameter)  # type: ignore[attr-defined]
            full = f"{prefix}$$${name}"
            effectful(type="param")(lambda *_, value=parameter, **__: value)(
                full, parameter, constraint=constraints.real, name=full
            )


class _Itself:
    """What `pyro.infer.SVI` calls to get the tensor behind a parameter. A copy of the parameter comes without it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._reference = weakref.ref(parameter)

    def __call__(self) -> nn.Parameter | None:
        return self._reference()

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    return None


class DrawnOnce(Messenger):
    """Context in which a latent variable is drawn once: to sample its name again gives the same value."""

    def __enter__(self) -> Any:
        self._drawn: dict[str, Tensor] = {}
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        value = self._drawn.get(msg["name"])
        if value is None or msg["is_observed"]:
            return
        if value.shape != torch.Size(msg["fn"].shape()):
            raise InputError(
                f"prior: samples {msg['name']!r} of shape {tuple(value.shape)}, and again of shape "
                f"{tuple(msg['fn'].shape())}: one name is one latent variable; put the site's name in front, as in "
                f"f'{{site.name}}.{msg['name']}'"
            )
        msg["value"], msg["done"], msg["stop"] = value, True, True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            self._drawn[msg["name"]] = msg["value"]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which computations stay in float32 within `torch.autocast`."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Context in which the process keeps the memory that it frees, if its C library is glibc.

    glibc returns large freed buffers to the system and requests them again, thousands of pages for each training step,
    which takes up to a third of its time on a CPU. At the end, unused memory is returned.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))
    libc.mallopt(_MMAP_THRESHOLD, ctypes.c_int(_LARGEST))
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, ctypes.c_int(2 * _LARGEST))
        libc.malloc_trim(ctypes.c_size_t(0))
