"""Cut units of a network and keep their mean contribution as a bias.

The mean is taken at the centre of the input of a unit: the bias of the LayerNorm before it or, for a feature of a
patch, a plain image of ``pixel_mean``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..network import LAYER
from ..network.units import SITES, UNITS, Unit

Parameters = dict[str, Tensor]
"""Parameters of a `ViT` by name, in double precision on the CPU."""


def silence(p: Parameters, unit: Unit, gone: Tensor) -> None:
    """Cut units of one kind.

    Args:
        p: the parameters of the network, which are changed in place.
        unit: the kind of unit.
        gone: booleans over the dimensions of the unit, true for units that are cut.

    Raises:
        RuntimeError: if the shape of ``gone`` does not fit.
    """
    if unit.parts:
        for part in (UNITS[name] for name in unit.parts):
            silence(p, part, _aligned(gone, unit.dims, part.dims).expand(_shape(p, part)))
        return
    if list(gone.shape) != _shape(p, unit):
        raise RuntimeError(f"gone of shape {tuple(gone.shape)} for {_shape(p, unit)} units")
    centre = _centre(p, unit)
    if unit.constant:
        for reader in unit.readers:
            dims, _, writes = SITES[reader]
            outputs = tuple(d for d in dims if d == LAYER or d in writes)
            p[unit.constant] = p[unit.constant] + _einsum(p[reader], dims, centre * gone, unit.dims, outputs)
            p[reader] = p[reader] * ~_aligned(gone, unit.dims, dims)
        cut = unit.writers
    else:  # the constant of a query stays as its bias, since it multiplies keys that differ between tokens
        p[unit.bias] = torch.where(gone, centre, p[unit.bias].view(gone.shape)).flatten(1)
        cut = unit.writers[:1]
    for writer in cut:
        p[writer] = p[writer] * ~_aligned(gone, unit.dims, SITES[writer][0])


def _centre(p: Parameters, unit: Unit) -> Tensor:
    """The output of a unit when its inputs are at their centre, over the dimensions of the unit."""
    if not unit.writers:
        return plain_features(p)
    writer = unit.writers[0]
    dims, reads, _ = SITES[writer]
    inputs = tuple(d for d in dims if d == LAYER or d in reads)
    centre = _einsum(p[writer], dims, p[unit.norm], inputs, unit.dims) + p[unit.bias].view(_shape(p, unit))
    return centre if unit.activation is None else unit.activation(centre)


def plain_features(p: Parameters) -> Tensor:
    """Features that the stem makes of an image whose pixels are all at their mean, away from the border."""
    convolutions = sorted(name.removesuffix(".weight") for name in p if name.startswith("stem.") and "weight" in name)
    features = p["patch_embed"].new_zeros(p["patch_embed"].shape[1])
    if not convolutions:
        return features
    x = features.new_zeros(p[f"{convolutions[0]}.weight"].shape[1])
    for name in convolutions:
        x = F.gelu(p[f"{name}.weight"].sum((2, 3)) @ x + p[f"{name}.bias"])
    return x.repeat_interleave(len(features) // len(x))


def _einsum(
    x: Tensor, x_dims: tuple[str, ...], y: Tensor, y_dims: tuple[str, ...], result_dims: tuple[str, ...]
) -> Tensor:
    """`torch.einsum` of tensors whose dimensions have names."""
    letters = {dim: chr(ord("a") + i) for i, dim in enumerate(dict.fromkeys((*x_dims, *y_dims)))}
    first, second, result = ("".join(letters[d] for d in dims) for dims in (x_dims, y_dims, result_dims))
    return torch.einsum(f"{first},{second}->{result}", x, y)


def _aligned(gone: Tensor, dims: tuple[str, ...], onto: tuple[str, ...]) -> Tensor:
    """Reshape values over ``dims`` to broadcast over ``onto``, with size 1 in the dimensions that they lack."""
    sizes = dict(zip(dims, gone.shape, strict=True))
    return gone.reshape([sizes.get(dim, 1) for dim in onto])


def _shape(p: Parameters, unit: Unit) -> list[int]:
    dims = SITES[unit.sites[0]][0]
    return [p[unit.sites[0]].shape[dims.index(dim)] for dim in unit.dims]
