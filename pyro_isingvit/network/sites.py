"""Weight sites: one for each role of a network's weights, which the model samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

LAYER = "layer"
"""The dimension that runs over the blocks of the encoder."""


Linear = Callable[[str, int | None, Tensor, Tensor, Tensor | None], Tensor]
"""A function that applies a linear layer of a network.

Its arguments are the name of the site, the block (None if the site has no blocks), the input (..., inputs), the weight
(outputs, inputs), and the bias (outputs,) or None. It returns (..., outputs)."""


def linear(site: str, layer: int | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The default `Linear`, `torch.nn.functional.linear`."""
    return F.linear(x, weight, bias)


@dataclass(frozen=True)
class WeightSite:
    """A weight tensor that has a prior: all weights of one role, stacked over the blocks.

    Attributes:
        name: name of the parameter in the network, e.g. ``"encoder.up"``. The Pyro sample sites are
            ``f"{name}.mask"`` and ``f"{name}.weight"``.
        shape: shape of the weight.
        dims: a name for each dimension, also used for labelled arrays (xarray, ArviZ).
        reads: the dimensions that are summed over when the weight is applied (its input units).
        writes: the dimensions of the result (its output units).

    Raises:
        InputError: if there is not one name for each dimension, or ``reads`` or ``writes`` names another one.
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.dims):
            raise InputError(f"site {self.name!r}: shape {self.shape} needs {len(self.shape)} dims, got {self.dims}")
        strangers = (set(self.reads) | set(self.writes)) - set(self.dims)
        if strangers:
            raise InputError(f"site {self.name!r}: reads and writes must be among dims {self.dims}, not {strangers}")

    @property
    def mask_name(self) -> str:
        """Name of the Pyro site of the binary mask."""
        return f"{self.name}.mask"

    @property
    def weight_name(self) -> str:
        """Name of the Pyro site of the weight."""
        return f"{self.name}.weight"

    @property
    def key(self) -> str:
        """The name without dots, as `torch.nn.ParameterDict` requires."""
        return self.name.replace(".", "_")

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def fan_in(self) -> int:
        """Number of inputs that one output of the weight sums over."""
        return self.numel // math.prod(self.unit_shape)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of one number for each output unit, which broadcasts to that of the weight."""
        summed = set(self.reads) - set(self.writes)  # a depthwise convolution reads and writes its channels
        return tuple(1 if dim in summed else size for size, dim in zip(self.shape, self.dims, strict=True))

    def axis(self, dim: str) -> int:
        """The axis of a dimension, counted from the right, so that batch dimensions may precede it."""
        return self.dims.index(dim) - len(self.dims)


def by_name(sites: Sequence[WeightSite]) -> dict[str, WeightSite]:
    """The sites as a dictionary, in their order.

    Raises:
        InputError: if two sites share a name, or there are no sites.
    """
    table = {site.name: site for site in sites}
    if len(table) != len(sites) or not table:
        raise InputError(f"sites={[s.name for s in sites]}: need at least one site and different names")
    return table
