"""The roles of a network's weights: names of sites and dimensions, what is stacked over blocks, and couplings."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .couplings import Coupling
from .network import LAYER, WeightSite
from .network.passes import Call, Pass

PARTS = {3: ("query", "key", "value")}
"""Names of the parts of a packed weight, by their number."""

BODY = ("height", "width", "depth")
"""Names of the dimensions of a convolution's kernel."""


@dataclass(frozen=True)
class Piece:
    """A part of a parameter of the original network: some rows of it, along the axis of its outputs.

    Attributes:
        parameter: name of the parameter.
        rows: number of the first row, and of the first after it.
        role: name of the site that it belongs to.
        layer: its place in that site; None if the site has no blocks.
    """

    parameter: str
    rows: tuple[int, int]
    role: str
    layer: int | None = None


def short(name: str) -> str:
    """The name of a parameter without ``weight``."""
    return re.sub(r"[._]weight$", "", name) or name


Key = tuple[int, ...]
"""Numbers of units along an axis, which says whether two axes are of the same units."""


class Roles:
    """Names of roles and dimensions, and couplings, from what was found by following a pass."""

    def __init__(self, module: nn.Module, passed: Pass, chosen: Mapping[str, None]) -> None:
        self.module, self.passed, self.chosen = module, passed, chosen
        self.parts = {k: self._parts(k, call) for k, call in enumerate(passed.calls)}
        self.apart: set[str] = set()  # roles that are not stacked

    def made(self) -> tuple[list[WeightSite], list[Piece], list[Coupling], dict[str, tuple[str, ...]]]:
        """Sites, what they are made of, couplings, and the `unit_levels` of the sites."""
        while True:
            pieces = self._pieces()
            dims = self._dims(pieces)
            pairs = self._pairs(pieces, dims)
            wrong = {p.role for p in pieces if p.layer is not None and dims[p] != dims[_first(pieces, p.role)]}
            wrong |= {a.role for a, _, b, _ in pairs if a.role == b.role}
            if not wrong:
                break
            self.apart |= wrong
        sites = [
            self._site(role, [p for p in pieces if p.role == role], dims)
            for role in dict.fromkeys(piece.role for piece in pieces)
        ]
        depth = Counter(piece.role for piece in pieces if piece.layer is not None)
        couplings = list(_compressed(pairs, depth))
        return sites, pieces, couplings, unit_levels(sites, couplings, self._of_one(dims))

    def _parts(self, number: int, call: Call) -> list[tuple[str, tuple[int, int]]]:
        """Names and rows of the parts of a weight whose outputs are used in equal parts, as of packed attention."""
        size, first = len(call.outputs), int(call.outputs[0])
        if call.axes[0] == call.axes[1]:
            return [("", (0, size))]
        reads = [each for other in self.passed.calls for each in other.inputs]
        reads += [each for pair in self.passed.products for each in pair]
        starts: dict[int, int] = {}
        for numbers, writers in reads:
            own = numbers[(numbers >= first) & (numbers < first + size)].unique() if number in writers else numbers[:0]
            if len(own) and int(own[-1] - own[0]) + 1 == len(own) < size and size % len(own) == 0:
                starts[int(own[0]) - first] = len(own)
        lengths = set(starts.values())
        length = lengths.pop() if len(lengths) == 1 else size
        if any(start % length for start in starts):
            return [("", (0, size))]
        count = size // length
        if count == 1:
            return [("", (0, size))]
        names = PARTS.get(count, tuple(f"part{k}" for k in range(count)))
        return [(names[k], (k * length, (k + 1) * length)) for k in range(count)]

    def _pieces(self) -> list[Piece]:
        """All pieces in the order of their use, with the roles that they have together."""
        plain = []
        for number, call in enumerate(self.passed.calls):
            if call.name in self.chosen:
                for part, rows in self.parts[number]:
                    plain.append(Piece(call.name, rows, short(call.name) + (f".{part}" if part else "")))
        shape = {piece: self._shape(piece) for piece in plain}
        patterns: dict[tuple[str, tuple[int, ...]], list[Piece]] = {}
        for piece in plain:
            for pattern in _patterns(piece.role):
                patterns.setdefault((pattern, shape[piece]), []).append(piece)
        found, taken = [], {piece.role for piece in plain}
        for piece in plain:
            role, layer = piece.role, None
            for pattern in _patterns(piece.role):
                group = patterns[pattern, shape[piece]]
                stacked = _without_number(pattern)
                if len(group) > 1 and stacked not in taken | self.apart:
                    others = {
                        p for p, members in patterns.items() if _without_number(p[0]) == stacked and len(members) > 1
                    }
                    if len(others) == 1:
                        role, layer = stacked, group.index(piece)
                        break
            found.append(Piece(piece.parameter, piece.rows, role, layer))
        together = Counter(piece.role for piece in found)  # some of a group may be in another one
        place: Counter[str] = Counter()
        for i, piece in enumerate(found):
            if piece.layer is not None:
                alone = together[piece.role] == 1
                found[i] = plain[i] if alone else replace(piece, layer=place[piece.role])
                place[piece.role] += 1
        return found

    def _shape(self, piece: Piece) -> tuple[int, ...]:
        """Outputs, inputs and kernel of a piece."""
        shape = tuple(self.module.get_parameter(piece.parameter).shape)
        if self._call(piece).axes == (1, 0):
            shape = shape[::-1]
        return (piece.rows[1] - piece.rows[0], *shape[1:])

    def _call(self, piece: Piece) -> Call:
        return next(call for call in self.passed.calls if call.name == piece.parameter)

    def _key(self, numbers: Tensor) -> Key:
        return tuple(self.passed.same[numbers].tolist()) if bool((numbers >= 0).all()) else ()

    def _outputs(self, piece: Piece) -> Key:
        return self._key(self._call(piece).outputs[slice(*piece.rows)])

    def _dims(self, pieces: Sequence[Piece]) -> dict[Piece, tuple[tuple[str, int], ...]]:
        """Names and sizes of the dimensions of each piece."""
        names: dict[Key, str] = {}
        for piece in pieces:
            names.setdefault(self._outputs(piece), piece.role)
        found = {}
        for piece in pieces:
            rows, *rest = self._shape(piece)
            call, dims = self._call(piece), [(names[self._outputs(piece)], rows)]
            if call.axes[0] != call.axes[1]:
                columns = rest.pop(0)
                dims += self._columns(piece, call, columns, names)
            else:
                rest.pop(0)
            dims += [(f"{piece.role}.{name}", size) for name, size in zip(BODY, rest, strict=False)]
            seen: set[str] = set()
            for k, (name, size) in enumerate(dims):
                if name in seen:
                    dims[k] = (f"{name}.in", size)
                seen.add(name)
            found[piece] = tuple(dims)
        return found

    def _columns(self, piece: Piece, call: Call, size: int, names: Mapping[Key, str]) -> list[tuple[str, int]]:
        """The dimensions of the inputs of a piece: of known units, these, each with as many places as it has."""
        for numbers, _ in call.inputs:
            key = self._key(numbers)
            if key in names:
                return [(names[key], size)]
            for known, name in names.items():
                places = size // len(known) if known and size % len(known) == 0 else 0
                if places > 1 and key and key == tuple(number for number in known for _ in range(places)):
                    return [(name, len(known)), (f"{piece.role}.place", places)]
        return [(f"{piece.role}.in", size)]

    def _of_one(self, dims: Mapping[Piece, tuple[tuple[str, int], ...]]) -> set[str]:
        """Dimensions of units that are in no sum of what several weights write, with or without masks."""
        sums = self.passed.same[self.passed.sums].unique()
        summed = {
            named[0][0]
            for piece, named in dims.items()
            if bool(torch.isin(self.passed.same[self._call(piece).outputs[slice(*piece.rows)]], sums).any())
        }
        return {named[0][0] for named in dims.values()} - summed

    def _site(self, role: str, own: Sequence[Piece], dims: Mapping[Piece, tuple[tuple[str, int], ...]]) -> WeightSite:
        names, sizes = zip(*dims[own[0]], strict=True)
        call = self._call(own[0])
        reads = names[1:] if call.axes[0] != call.axes[1] else names
        if own[0].layer is not None:
            return WeightSite(role, (len(own), *sizes), (LAYER, *names), reads, names[:1])
        return WeightSite(role, sizes, names, reads, names[:1])

    def _pairs(
        self, pieces: Sequence[Piece], dims: Mapping[Piece, tuple[tuple[str, int], ...]]
    ) -> list[tuple[Piece, str, Piece, str]]:
        """Pieces that share units, with the dimension of each: writers with readers, and factors of products."""
        by_call: dict[int, list[Piece]] = {}
        for number, call in enumerate(self.passed.calls):
            by_call[number] = [piece for piece in pieces if piece.parameter == call.name]
        found = []

        def writers(key: Key, calls: frozenset[int]) -> Iterator[Piece]:
            for number in sorted(calls):
                yield from (piece for piece in by_call[number] if key and self._outputs(piece) == key)

        for number, call in enumerate(self.passed.calls):
            for numbers, calls in call.inputs:
                for reader in by_call[number]:
                    name, size = dims[reader][0] if call.axes[0] == call.axes[1] else dims[reader][1]
                    raw = numbers if size == len(numbers) else numbers[:: len(numbers) // size]
                    for writer in writers(self._key(raw), calls):
                        found.append((writer, dims[writer][0][0], reader, name))
        for (first, of_first), (second, of_second) in self.passed.products:
            for a in writers(self._key(first), of_first):
                for b in writers(self._key(second), of_second):
                    if self._has_rows(a, first) and self._has_rows(b, second):
                        found.append((a, dims[a][0][0], b, dims[b][0][0]))
        return list(dict.fromkeys(found))

    def _has_rows(self, piece: Piece, numbers: Tensor) -> bool:
        """Whether units are those that a piece itself has written, of a packed weight of which others are the same."""
        outputs = self._call(piece).outputs[slice(*piece.rows)]
        return bool(torch.isin(numbers, outputs).all())


def unit_levels(
    sites: Sequence[WeightSite], couplings: Sequence[Coupling], of_one: set[str]
) -> dict[str, tuple[str, ...]]:
    """Dimensions of masks of whole units, by site: of such that it reads, or else of such that it writes.

    Args:
        sites: the sites.
        couplings: their couplings, without which nothing is known to read or write a unit.
        of_one: dimensions of units that are in no sum of several layers.
    """
    coupled = {dim for each in couplings for dim in (*each.units, *(each.second_units or ()))}
    found = {}
    for site in sites:
        unit = next((dim for dim in (*site.reads, *site.writes) if dim in of_one & coupled), None)
        if unit is not None:
            found[site.name] = tuple(dim for dim in site.dims if dim in (LAYER, unit))
    return found


def _compressed(pairs: Sequence[tuple[Piece, str, Piece, str]], depth: Mapping[str, int]) -> Iterator[Coupling]:
    """Couplings of sites, from those of their pieces."""
    layers: dict[tuple[str, str, str, str], list[tuple[int | None, int | None]]] = {}
    for a, first, b, second in pairs:
        layers.setdefault((a.role, first, b.role, second), []).append((a.layer, b.layer))
    for (a_role, first, b_role, second), every in layers.items():
        number = depth.get(a_role, 0)
        alike = number > 0 and depth.get(b_role) == number
        units, others = (LAYER, first), None if first == second else (LAYER, second)
        if alike and set(every) == {(k, k) for k in range(number)}:
            yield Coupling(a_role, b_role, units, second_units=others)
        elif alike and number > 1 and set(every) == {(k, k + 1) for k in range(number - 1)}:
            yield Coupling(a_role, b_role, units, 1.0, slice(None, -1), slice(1, None), others)
        else:
            for at_first, at_second in every:
                yield Coupling(a_role, b_role, units[1:], 1.0, at_first, at_second, others and others[1:])


def _patterns(role: str) -> list[str]:
    """The name of a role with each of its numbers replaced by a star, from the left."""
    return [f"{role[: m.start()]}*{role[m.end() :]}" for m in re.finditer(r"(?<=[._])\d+(?=\.|$)", role)]


def _without_number(pattern: str) -> str:
    return re.sub(r"[._]\*", "", pattern)


def _first(pieces: Sequence[Piece], role: str) -> Piece:
    return next(piece for piece in pieces if piece.role == role)
