"""The state of training that can be put back: snapshots, and what no state dict holds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Any]
"""Tensors, numbers and text in nested mappings and lists."""


@dataclass(frozen=True)
class Snapshot:
    """A state of training: states of model, guide and optimiser, and counters and rows of the `Trainer`."""

    states: Sequence[dict[str, Any]]
    step: int
    position: float
    stride: float
    rows: Sequence[dict[str, Any]]


def generators(device: torch.device) -> State:
    """The states of all generators of random numbers that training, or a user's augmentation, can use."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002, a user's code may use it
    version_, inner, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version_, torch.tensor(inner), gauss],
    }


def set_generators(states: State, device: torch.device) -> None:
    """Set what `generators` returned."""
    torch.set_rng_state(states["torch"])
    if states["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version_, inner, gauss = states["python"]
    random.setstate((version_, tuple(inner.tolist()), gauss))


def attributes(module: nn.Module) -> State:
    """Numbers and tensors that a module and its submodules keep beside their parameters and buffers."""
    return {
        name: {key: value for key, value in vars(part).items() if _is_state(value)}
        for name, part in module.named_modules()
    }


def set_attributes(module: nn.Module, values: State) -> None:
    """Set what `attributes` returned."""
    device = next((p.device for p in module.parameters()), None)
    for name, part in module.named_modules():
        for key, value in values.get(name, {}).items():
            setattr(part, key, value.to(device) if isinstance(value, Tensor) else value)


def _is_state(value: object) -> bool:
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and not value.requires_grad
    return isinstance(value, bool | int | float)
