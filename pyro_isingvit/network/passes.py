"""What following a pass of a network finds: units, the calls that read and write them, and which are the same."""

from dataclasses import dataclass, field

from torch import Tensor

Reading = tuple[Tensor, frozenset[int]]
"""Numbers of units, and the calls that wrote them."""


@dataclass(frozen=True)
class Units:
    """Units that elements of a value belong to.

    Attributes:
        numbers: number of the unit of each element, in the shape of the value.
        writers: calls that wrote them last.
    """

    numbers: Tensor
    writers: frozenset[int]

    def varies(self, axis: int) -> bool:
        """Whether elements along an axis belong to different units."""
        first = self.numbers.narrow(axis, 0, 1)
        return bool((self.numbers != first).any())

    def along(self, axis: int) -> Tensor:
        """The numbers along an axis, for one place of all others."""
        numbers = self.numbers.movedim(axis, -1)
        return numbers.reshape(-1, numbers.shape[-1])[0]


@dataclass
class Call:
    """A linear map or convolution by one parameter.

    Attributes:
        name: name of the parameter.
        axes: axes of the parameter of its outputs and inputs; the same if each channel has its own (depthwise).
        outputs: numbers of the units that it writes.
        inputs: units that it reads, with the calls that wrote them; none where these are not units.
        before: calls whose results it depends on.
    """

    name: str
    axes: tuple[int, int]
    outputs: Tensor
    inputs: list[Reading] = field(default_factory=list)
    before: frozenset[int] = frozenset()


@dataclass
class Pass:
    """What was found by following a pass.

    Attributes:
        calls: of linear maps and convolutions, in order.
        products: pairs of units of two values that are multiplied and summed over, with the calls that wrote each.
        unknown: names of operations that units could not be followed through.
        same: for each unit, a number that it shares with the units that were joined to it.
        sums: numbers of units to which several calls have added, among others.
    """

    calls: list[Call]
    products: list[tuple[Reading, Reading]]
    unknown: list[str]
    same: Tensor
    sums: Tensor
