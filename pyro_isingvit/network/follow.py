"""Which units the weights of any network share, found by following one pass of it.

Every value of the pass carries the numbers of the units that its elements belong to, and operations that move elements
move these numbers with them. A linear map or convolution reads the units of its input and writes new ones; a sum joins
the units of its terms; a product of two values, as of queries and keys, pairs the units that are summed over.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InputError
from .passes import Call, Pass, Reading, Units

MOVES = (
    {"view", "_unsafe_view", "_reshape_alias", "as_strided", "permute", "transpose", "t", "expand", "unsqueeze"}
    | {"squeeze", "clone", "detach", "alias", "slice", "select", "split", "split_with_sizes", "unbind", "index"}
    | {"index_select", "roll", "flip", "repeat", "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "diagonal"}
)
"""Operations that move elements without changing them; they are applied to the numbers of the units as well."""

JOINS = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "where", "maximum", "minimum", "lerp", "rsub"}
"""Operations whose result has the units of all operands, which are the same units from then on."""

FACTORS = {"mul", "mul_", "div", "div_"}
"""Those of them after which a unit is nothing if it is in one operand."""

POOLS = {"avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d"} | {
    f"upsample_{how}2d" for how in ("bilinear", "nearest", "bicubic")
}
"""Operations over space, which keep channels."""

REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "argmax", "std", "var", "prod", "linalg_vector_norm", "norm"}


def follow(module: nn.Module, arguments: Sequence[Any]) -> Pass:
    """Follow a pass of a module in evaluation mode.

    Raises:
        InputError: if the pass fails.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    shadow = _Shadow(names)
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad(), _plain_attention(), shadow:
            module(*arguments)
    except InputError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"example: {type(module).__name__} fails with it ({said}); give a batch as it takes") from None
    finally:
        for part in training:
            part.training = True
    unknown, sums = list(dict.fromkeys(shadow.unknown)), torch.cat([torch.zeros(0, dtype=torch.long), *shadow.sums])
    return Pass(shadow.calls, shadow.products, unknown, shadow.resolved(), sums)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Context in which attention is spelled out, rather than one operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Shadow(TorchDispatchMode):
    """Runs operations, and with them what their values' units are."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.calls: list[Call] = []
        self.products: list[tuple[Reading, Reading]] = []
        self.unknown: list[str] = []
        self.sums: list[Tensor] = []
        self._parents: list[int] = []
        self._units: dict[int, list[Units]] = {}
        self._weights: dict[int, tuple[str, bool]] = {}  # a parameter or its transpose: name, and whether transposed
        self._alive: list[Any] = []  # so that no other value gets the same id

    def resolved(self) -> Tensor:
        return torch.tensor([self._root(i) for i in range(len(self._parents))], dtype=torch.long)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        name = func.overloadpacket.__name__
        self._alive.append(result)
        weight = self._weight_of(args, name)
        if weight is not None:
            self._weights[id(result)] = weight
            return result
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            self._multiply(args[-2:], result)
        elif name in ("convolution", "_convolution"):
            self._convolve(args, result)
        elif any(self.of(arg) for arg in _tensors(args)):
            self._carry(func, name, args, options, result)
        return result

    def of(self, value: Any) -> list[Units]:
        return self._units.get(id(value), [])

    def _weight_of(self, args: Sequence[Any], name: str) -> tuple[str, bool] | None:
        """The parameter of which this operation makes a view in its own or reverse order."""
        known = self._parameter(args[0]) if args and isinstance(args[0], Tensor) else None
        if known is None or name not in ("t", "transpose", "detach", "alias", "permute", "_to_copy"):
            return None
        turns = name in ("t", "transpose", "permute") and args[0].dim() == 2
        return known[0], known[1] != turns

    def _parameter(self, value: Any) -> tuple[str, bool] | None:
        if id(value) in self._weights:
            return self._weights[id(value)]
        return (self.names[id(value)], False) if id(value) in self.names else None

    def _new(self, number: int) -> Tensor:
        start = len(self._parents)
        self._parents.extend(range(start, start + number))
        return torch.arange(start, start + number)

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def _same(self, first: Tensor, second: Tensor) -> None:
        pairs = torch.stack([first.flatten(), second.flatten()], 1).unique(dim=0)
        for a, b in pairs.tolist():
            one, other = sorted((self._root(a), self._root(b)))
            self._parents[other] = one

    def _multiply(self, operands: Sequence[Tensor], result: Tensor) -> None:
        first, second = operands
        weight = self._parameter(second)
        if weight is not None and second.dim() == 2:
            name, transposed = weight
            axes = (0, 1) if transposed else (1, 0)  # a Linear enters transposed
            self._call(name, axes, self.of(first), first.dim() - 1, result, result.dim() - 1)
            return
        of_first, of_second = self.of(first), self.of(second)
        found = []
        for a in of_first:
            for b in of_second:
                if a.varies(-1) and b.varies(-2):
                    self._pair(a, b)
        for units, axis in ((of_first, -1), (of_second, -2)):  # what is not summed over is carried on
            for each in units:
                if not each.varies(axis) and any(each.varies(k) for k in range(each.numbers.dim())):
                    found.append(Units(each.numbers.narrow(axis, 0, 1).expand(result.shape), each.writers))
        self._units[id(result)] = found

    def _pair(self, a: Units, b: Units) -> None:
        first = a.numbers.narrow(-2, 0, 1).squeeze(-2).flatten()
        second = b.numbers.narrow(-1, 0, 1).squeeze(-1).flatten()
        seen = torch.stack([first, second], 1)[(first >= 0) & (second >= 0)].unique(dim=0)
        self.products.append(((seen[:, 0], a.writers), (seen[:, 1], b.writers)))
        self._same(seen[:, 0], seen[:, 1])

    def _convolve(self, args: Sequence[Any], result: Tensor) -> None:
        value, kernel, groups = args[0], args[1], args[8]
        weight = self._parameter(kernel)
        if weight is None:
            return
        name, units = weight[0], self.of(value)
        if args[6]:
            raise InputError(f"{name}: a transposed convolution, which is not supported")
        channels = value.dim() - kernel.dim() + 1
        if groups > 1 and kernel.shape[1] == 1 and kernel.shape[0] == groups:
            self._call(name, (0, 0), units, channels, result, channels, own=True)
        elif groups > 1:
            raise InputError(f"{name}: a convolution in {groups} groups of several channels, which is not supported")
        else:
            self._call(name, (0, 1), units, channels, result, channels)

    def _call(
        self,
        name: str,
        axes: tuple[int, int],
        units: list[Units],
        read: int,
        result: Tensor,
        write: int,
        own: bool = False,
    ) -> None:
        """A map of the axis ``read`` of a value to the axis ``write`` of a result."""
        consumed = [(each.along(read), each.writers) for each in units if each.varies(read)]
        size = result.shape[write]
        outputs = consumed[0][0] if own and consumed else self._new(size)
        number = len(self.calls)
        self.calls.append(Call(name, axes, outputs, consumed, self._before(units)))
        shape = [1] * result.dim()
        shape[write] = size
        found = [Units(outputs.view(shape).expand(result.shape), frozenset([number]))]
        for each in units:  # units along other axes are carried on, as in a mixer
            if not each.varies(read) and any(each.varies(k) for k in range(each.numbers.dim())):
                one = each.numbers.narrow(read, 0, 1)
                if result.dim() == one.dim():
                    found.append(Units(one.expand(result.shape), each.writers))
        self._units[id(result)] = found

    def _before(self, units: Sequence[Units]) -> frozenset[int]:
        """The calls that wrote a value, and all that they depend on."""
        writers = frozenset().union(*(each.writers for each in units)) if units else frozenset()
        return writers.union(*(self.calls[writer].before for writer in writers))

    def _carry(self, func: Any, name: str, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        outputs = [result] if isinstance(result, Tensor) else [each for each in result if isinstance(each, Tensor)]
        if name in MOVES:
            for units in self.of(args[0]):
                how = (args[1], -1) if name == "constant_pad_nd" else args[1:]  # padding belongs to no unit
                moved = func(units.numbers.contiguous(), *how, **options)
                for value, numbers in zip(outputs, [moved] if isinstance(moved, Tensor) else moved, strict=True):
                    self._units.setdefault(id(value), []).append(Units(numbers, units.writers))
        elif name in ("cat", "stack"):
            self._concatenate(func, args, outputs[0])
        elif name in POOLS:
            for units in self.of(args[0]):
                kept = units.numbers[..., :1, :1] if outputs[0].dim() > 2 else units.numbers
                self._units.setdefault(id(outputs[0]), []).append(Units(kept.expand(outputs[0].shape), units.writers))
        elif name in REDUCTIONS:
            self._reduce(args, outputs[0])
        elif outputs and name in JOINS:
            self._join([arg for arg in _tensors(args) if self.of(arg)], outputs[0], name not in FACTORS)
        else:
            sources = [arg for arg in _tensors(args) if self.of(arg)]
            if outputs and len(sources) == 1 and outputs[0].shape == sources[0].shape:
                self._units[id(outputs[0])] = self.of(sources[0])
            else:
                self.unknown.append(name)

    def _concatenate(self, func: Any, args: tuple[Any, ...], result: Tensor) -> None:
        parts, axis = args[0], args[1] if len(args) > 1 else 0
        every = [self.of(part) for part in parts]
        for k in range(max(len(units) for units in every)):
            writers: frozenset[int] = frozenset().union(*(units[k].writers for units in every if k < len(units)))
            pieces = []
            known = next(units[k].numbers for units in every if k < len(units))
            for part, units in zip(parts, every, strict=True):
                if k < len(units):
                    pieces.append(units[k].numbers)
                elif known.shape[:axis] == part.shape[:axis] and not Units(known, writers).varies(axis):
                    pieces.append(known.narrow(axis, 0, 1).expand(part.shape))  # as of a class token
                else:
                    pieces.append(torch.full(part.shape, -1))
            self._units.setdefault(id(result), []).append(Units(func(pieces, axis), writers))

    def _reduce(self, args: tuple[Any, ...], result: Tensor) -> None:
        axes = args[1] if len(args) > 1 and args[1] is not None else list(range(args[0].dim()))
        axes = [axes] if isinstance(axes, int) else list(axes)
        for units in self.of(args[0]):
            numbers = units.numbers
            if any(units.varies(axis) for axis in axes):
                continue
            kept = functools.reduce(lambda x, axis: x.narrow(axis, 0, 1), axes, numbers)
            if kept.numel() == result.numel():
                self._units.setdefault(id(result), []).append(Units(kept.reshape(result.shape), units.writers))

    def _join(self, operands: list[Tensor], result: Tensor, sums: bool) -> None:
        merged: list[Units] = []
        for operand in operands:
            for each in self.of(operand):
                numbers = each.numbers.broadcast_to(result.shape)
                varied = [k for k in range(result.dim()) if Units(numbers, each.writers).varies(k)]
                for i, other in enumerate(merged):
                    if varied and varied == [k for k in range(result.dim()) if other.varies(k)]:
                        both = (numbers >= 0) & (other.numbers >= 0)
                        self._same(numbers[both], other.numbers[both])
                        if sums and each.writers != other.writers:
                            self.sums.append(numbers[both].unique())
                        merged[i] = Units(torch.maximum(numbers, other.numbers), self._last(each, other))
                        break
                else:
                    merged.append(Units(numbers, each.writers))
        self._units[id(result)] = merged

    def _last(self, a: Units, b: Units) -> frozenset[int]:
        """The writers of a sum: of those of its terms, those that the others do not depend on."""
        before_a, before_b = (
            frozenset[int]().union(*(self.calls[writer].before for writer in each.writers)) for each in (a, b)
        )
        return (a.writers - before_b) | (b.writers - before_a)


def _tensors(args: Any) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)
