"""The compiled step: loss, gradients and what the guide learns from, by a function that Inductor makes of the graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.fx import GraphModule

from ..errors import InputError
from ..models.ising_vit import Pass
from .traced import (
    Autocast,
    Traced,
    as_tensor,
    eager_step,
    first_line,
    one_fake_mode,
    refusal,
    registered,
    same_random_state,
    trace,
)

MOST = 12
"""Largest number of times that a step is traced; a program that changes more often is not of fixed structure."""

Run = Callable[..., Sequence[Tensor]]
"""A graph as a function of its inputs."""


def inductor(graph: GraphModule, inputs: Sequence[Tensor]) -> Run:
    """Compile by Inductor, which caches on disk what it has compiled.

    Random numbers are torch's own: those of the eager step, and faster on a CPU than Inductor's.

    Raises:
        InputError: if there is no working C++ compiler.
    """
    from torch._inductor import compile as compile_graph
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        with one_fake_mode():
            return compile_graph(graph, list(inputs), options={"fallback_random": True})
    except Exception as error:
        inner = getattr(error, "inner_exception", error)
        if not isinstance(inner, CppCompileError | InvalidCxxCompiler):
            raise
        raise InputError(
            f"compile=True: no working C++ compiler ({first_line(inner)}): install g++ or clang++, or use compile=False"
        ) from error


class CompiledStep:
    """`eager_step`, traced and compiled once for each structure of the program.

    Loss and gradients are those of the eager step with the same random numbers, to rounding. While Pyro's validation is
    enabled the step runs eagerly. A change of a number, of the batch's shape, of which masks are fixed or of which
    parameters have gradients is a new structure; a change of the temperature or of any tensor is none.

    The first call also traces the step without fixed masks, so that it is refused before the first phase of a fit
    rather than at the second.

    Args:
        loss: ``TraceGraph_ELBO()(model, guide)``.
        autocast: makes the context in which the loss is computed.
        compiler: makes a function of a graph, given inputs; `inductor` if None.

    Raises:
        InputError: at a call, if the step cannot be traced or compiled.
    """

    def __init__(
        self,
        loss: nn.Module,
        autocast: Autocast,
        compiler: Callable[[GraphModule, Sequence[Tensor]], Run] | None = None,
    ) -> None:
        self.loss, self.autocast, self.compiler = loss, autocast, compiler or inductor
        self.model: Any = loss.model
        self.guide: Any = loss.guide
        self._registered, self._constants = registered(loss), _constants(loss)
        self._traced: dict[tuple[Any, ...], Traced] = {}
        self._runs: dict[tuple[Any, ...], Run] = {}
        self._overlapping: dict[tuple[Any, ...], list[int]] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar in nats; the gradients are left in ``grad``, as by `eager_step`."""
        model = self.model
        structure, traced = self._trace(images, labels)
        inputs = [images, labels, as_tensor(model.temperature, images.device), *(get() for get in traced.inputs)]
        if structure not in self._runs:
            with same_random_state(images.device):
                self._runs[structure] = self.compiler(traced.graph, inputs)
        if is_validation_enabled():
            with torch.enable_grad():
                return eager_step(self.loss, self.autocast, images, labels)
        outputs = list(self._runs[structure](*inputs))
        if structure not in self._overlapping:
            self._overlapping[structure] = _overlapping(outputs, inputs)
        for index in self._overlapping[structure]:  # gradients are scaled in place
            outputs[index] = outputs[index].clone(memory_format=torch.contiguous_format)
        results = iter(outputs[1:])
        for name in traced.trained:
            holder, key = self._registered[name]
            gradient, before = next(results), holder[key].grad
            holder[key].grad = gradient if before is None else before + gradient
        if traced.entered:
            weights = {name: next(results) for name in traced.entered}
            for weight in weights.values():
                weight.grad = next(results)
            self.guide.see(Pass(images, labels, weights, model.temperature, model.num_data or len(images)))
        return outputs[0]

    def _trace(self, images: Tensor, labels: Tensor) -> tuple[tuple[Any, ...], Traced]:
        """The present structure and its graph, traced if it is new."""
        fixed = self.model.fixed_masks
        if not self._traced and fixed is not None:
            self.model.fix_masks(None)
            try:
                self._trace(images, labels)
            finally:
                self.model.fix_masks(fixed)
        structure = self._structure(images, labels)
        if structure not in self._traced:
            if len(self._traced) == MOST:
                changing = self._changing(structure)
                raise refusal(self.loss, f"changes too often in {changing}: make a buffer of a number that changes")
            self._traced[structure] = trace(self.loss, self.autocast, images, labels)
        return structure, self._traced[structure]

    def _structure(self, images: Tensor, labels: Tensor) -> tuple[Any, ...]:
        fixed = self.model.fixed_masks
        return (
            tuple([holder.get(key) for _, holder, key in self._constants]),
            None if fixed is None else tuple([(name, mask.shape) for name, mask in fixed.items()]),
            tuple([holder[key].requires_grad for holder, key in self._registered.values()]),
            (images.shape, images.dtype, labels.shape, labels.dtype),
        )

    def _changing(self, structure: tuple[Any, ...]) -> str:
        last = next(reversed(self._traced))
        each = zip(self._constants, last[0], structure[0], strict=True)
        return ", ".join(name for (name, *_), old, new in each if old != new) or "the shapes of batches or masks"


def _constants(loss: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """Everything in the modules that is a constant of a graph: name, a mapping that holds it, and its key.

    These are numbers and texts, alone or in a mapping, and the submodules, except the temperature, which is an input.
    """
    found: list[tuple[str, dict[str, Any], str]] = []
    for module in loss.modules():
        mappings = [vars(module), *(value for value in vars(module).values() if type(value) is dict)]
        for holder in mappings:
            for key, value in holder.items():
                counted = key in getattr(module, "counters", ()) or (module is loss.model and key == "temperature")
                if isinstance(value, bool | int | float | str | nn.Module) and not counted:
                    found.append((f"{type(module).__name__}.{key}", holder, key))
    return found


def _overlapping(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[int]:
    """Indices of the outputs that have memory in common with an input, an earlier output, or within themselves."""
    taken = [_extent(tensor) for tensor in inputs]
    found = []
    for index, tensor in enumerate(outputs):
        start, end = _extent(tensor)
        repeats = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        if repeats or any(start < other_end and other_start < end for other_start, other_end in taken):
            found.append(index)
        taken.append((start, end))
    return found


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first element and past the last."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
