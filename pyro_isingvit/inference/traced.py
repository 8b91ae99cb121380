"""A training step as one graph of tensor operations, which `make_fx` records from a run of program and backward pass.

Parameters, buffers, the temperature, and tensors that model and guide hold as attributes are inputs of the graph. What
a guide keeps from one draw to the next is computed within it. Numbers and the course of the program are constants.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, getitem, itemgetter
from types import FunctionType, ModuleType
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InputError

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which the loss is computed."""

Registered = dict[str, tuple[dict[str, Any], str]]
"""Where the parameters and buffers of a module are, by name: a mapping and a key, whose tensor may be replaced."""

_Path = tuple[Callable[[Any], Any], ...]

_LITERAL = torch.ops.aten.lift_fresh_copy.default
_READING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
)


def eager_step(
    loss: Callable[..., Tensor],
    autocast: Autocast,
    images: Tensor,
    labels: Tensor,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> Tensor:
    """Compute the loss of a batch, a scalar in nats, and leave the gradients in ``grad`` of the parameters."""
    with autocast():
        value = loss(images, labels)
    backward(value)
    return value.detach()


@dataclass(frozen=True)
class Traced:
    """A traced step.

    Attributes:
        graph: a function of images, labels, temperature, and what ``inputs`` return. It returns the loss, the gradients
            of ``trained``, the weights of ``entered``, and their gradients.
        inputs: functions that return the present value of each further input.
        trained: names of the parameters that have gradients.
        entered: names of the sites whose weights the guide sees; empty if it does not watch.
    """

    graph: GraphModule
    inputs: list[Callable[[], Tensor]]
    trained: list[str]
    entered: list[str]


def trace(loss: nn.Module, autocast: Autocast, images: Tensor, labels: Tensor) -> Traced:
    """Trace the step of a batch. Model, guide and random state stay as they are, but what a guide keeps is forgotten.

    Args:
        loss: ``TraceGraph_ELBO()(model, guide)``.
        autocast: makes the context in which the loss is computed.
        images, labels: the batch; the graph is for its shape.

    Raises:
        InputError: if the step cannot be traced, or its graph would not follow every change of model and guide.
    """
    model: Any = loss.model
    guide: Any = loss.guide
    places, before = registered(loss), model.temperature
    tensors = {name: holder[key] for name, (holder, key) in places.items()}
    trained, entered = list[str](), list[str]()

    def step(images: Tensor, labels: Tensor, temperature: Tensor, *values: Tensor) -> list[Tensor | None]:
        leaves = {
            name: value.detach().requires_grad_(tensors[name].requires_grad)
            for name, value in zip(tensors, values, strict=True)
        }
        model.temperature = temperature
        value = eager_step(lambda *batch: functional_call(loss, leaves, batch), autocast, images, labels)
        trained.extend(name for name, leaf in leaves.items() if leaf.grad is not None)
        results = [value, *(leaves[name].grad for name in trained)]
        if not guide.watches:
            return results
        if guide.seen is None or any(weight.grad is None for weight in guide.seen.weights.values()):
            raise refusal(loss, "sees no weights with gradients: call super().see(passing) in its see(passing)")
        if guide.see(guide.seen) is not None:
            raise refusal(loss, "applies the network's linear layers by itself: use estimator='squared_gradient'")
        entered.extend(guide.seen.weights)
        weights = guide.seen.weights.values()
        return [*results, *(weight.detach() for weight in weights), *(weight.grad for weight in weights)]

    copies = [tensor.detach().clone() for tensor in tensors.values()]  # in case the step changes some in place
    guide.forget()
    try:
        with (
            same_random_state(images.device),
            pyro.validation_enabled(False),
            torch.enable_grad(),
            one_fake_mode(),
            _NoReading(loss),
        ):
            graph = make_fx(step)(images, labels, as_tensor(before, images.device), *copies)
    except InputError:
        raise
    except Exception as error:
        raise refusal(loss, f"cannot be traced ({first_line(error)}): use another guide or prior") from error
    finally:
        model.temperature = before
        guide.forget()
    inputs: list[Any] = [partial(getitem, holder, key) for holder, key in places.values()]
    return Traced(graph, [*inputs, *_lift(graph, loss)], trained, entered)


def registered(loss: nn.Module) -> Registered:
    """Where all parameters and buffers are, by name; each once."""
    found: Registered = {}
    known: set[int] = set()
    for prefix, module in loss.named_modules():
        for holder in (module._parameters, module._buffers):
            for key, tensor in holder.items():
                if tensor is not None and id(tensor) not in known:
                    known.add(id(tensor))
                    found[f"{prefix}.{key}" if prefix else key] = holder, key
    return found


def refusal(loss: nn.Module, what: str) -> InputError:
    """The error for a step that is not compiled."""
    guide: Any = loss.guide
    model: Any = loss.model
    estimator, name = getattr(guide, "estimator", None), type(guide).__name__
    name = name if estimator is None else f"{name}(estimator={type(estimator).__name__})"
    prior = type(model.prior).__name__
    return InputError(f"compile=True: the step of guide={name} and prior={prior} {what}, or compile=False")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def as_tensor(temperature: float, device: torch.device) -> Tensor:
    """The temperature as an input of a graph: in double precision, as Python computes with it."""
    return torch.tensor(temperature, dtype=torch.float64, device=device)


def one_fake_mode() -> AbstractContextManager[Any]:
    """Context with one fake mode, in which shapes are constants; else torch makes one for each operation it traces.

    Inductor does not cache what it compiles outside of such a context.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # imports sympy, which only compiled steps need

    return tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)))


def same_random_state(device: torch.device) -> AbstractContextManager[Any]:
    """Context at whose end torch's random state is what it was."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


class _NoReading(TorchDispatchMode):
    """Refuses to make a number of a tensor, as this number would become a constant."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING:
            raise refusal(self.loss, "makes a number of a tensor (float(), bool(), if): keep it a tensor")
        return func(*args, **(kwargs or {}))


def _lift(graph: GraphModule, loss: nn.Module) -> list[Callable[[], Tensor]]:
    """Make inputs of the tensors that a graph holds, except those made of numbers. Returns functions to get them.

    Raises:
        InputError: if neither model nor guide holds one of them, as it could then be replaced unnoticed.
    """
    paths: dict[int, _Path] = {}
    _find_tensors(loss, (), paths, set())
    *_, last = (node for node in graph.graph.nodes if node.op == "placeholder")
    getters: list[Callable[[], Tensor]] = []
    for node in graph.graph.find_nodes(op="get_attr"):
        tensor = getattr(graph, node.target)
        if all(user.target is _LITERAL for user in node.users):
            continue
        if id(tensor) not in paths:
            shape = tuple(tensor.shape)
            raise refusal(loss, f"uses a tensor of shape {shape} that no module holds: register it as a buffer")
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"held_{len(getters)}")
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
        getters.append(partial(_follow, loss, paths[id(tensor)]))
    graph.recompile()
    return getters


def _find_tensors(holder: Any, path: _Path, found: dict[int, _Path], visited: set[int]) -> None:
    """Add the paths from a module to all tensors in its attributes, in containers and objects too, by ``id``."""
    if isinstance(holder, Tensor):
        found.setdefault(id(holder), path)
        return
    if id(holder) in visited or isinstance(holder, type | ModuleType | FunctionType):
        return
    visited.add(id(holder))
    parts: list[tuple[Callable[[Any], Any], Any]]
    if isinstance(holder, Mapping):
        parts = [(itemgetter(key), part) for key, part in holder.items()]
    elif isinstance(holder, list | tuple):
        parts = [(itemgetter(index), part) for index, part in enumerate(holder)]
    else:
        parts = [(attrgetter(name), part) for name, part in getattr(holder, "__dict__", {}).items()]
    for step, part in parts:
        _find_tensors(part, (*path, step), found, visited)


def _follow(holder: Any, path: _Path) -> Tensor:
    for step in path:
        holder = step(holder)
    return holder
