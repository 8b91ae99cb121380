"""Any network as the model takes it: weights of one role stacked over repeated blocks, and their couplings."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import reduce
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .data.images import checked_pixels
from .errors import InputError, kind_of
from .interactions import CouplingGraph
from .network import WeightSite
from .network.follow import follow
from .network.passes import Pass
from .network.stem import as_floats
from .roles import Piece, Roles, short


class Adapted(nn.Module):
    """A network whose weight matrices and kernels are weight sites; see `adapt`.

    Attributes:
        original: a copy of the network that was given, without these weights.
        couplings: the graph of couplings of masks that share a unit.
        unit_levels: dimensions of masks of whole units, by site name, for `StructuredSpikeSlab`. Units are those that
            are in no sum of several layers: hidden units, also gated, those of queries and keys, and of values,
            channels within a residual block. All weights of a site at a unit that it reads share a mask, or else at a
            unit that it writes. Sites that read and write nothing but such sums are not named.
        uncoupled: names of sites whose masks are not coupled to any other.
        unknown: names of operations that units could not be followed through.
        image_shape: (channels, height, width) of the images that it takes.
        config: what it was made from, for descriptions.
        frozen: whether what has no mask is frozen, with the statistics of batch norms.

    Images are floats within [0, 1] or bytes, as everywhere; they are standardised by ``mean`` and ``std``.
    """

    mean: Tensor
    std: Tensor
    frozen = False

    def __init__(
        self,
        original: nn.Module,
        sites: Sequence[WeightSite],
        pieces: Sequence[Piece],
        axes: Mapping[str, tuple[int, int]],
        couplings: CouplingGraph,
        unit_levels: Mapping[str, tuple[str, ...]],
        unknown: Sequence[str],
        around: str,
        standard: tuple[Tensor, Tensor],
        shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.original, self._sites, self.pieces, self.axes = original, tuple(sites), tuple(pieces), dict(axes)
        self.couplings, self.unit_levels, self.unknown = couplings, dict(unit_levels), tuple(unknown)
        self.around, self.image_shape = around, shape
        coupled = {name for each in couplings.couplings for name in (each.first, each.second)}
        self.uncoupled = tuple(site.name for site in sites if site.name not in coupled)
        self.register_buffer("mean", standard[0], persistent=False)
        self.register_buffer("std", standard[1], persistent=False)
        standardised = {"mean": standard[0].flatten().tolist(), "std": standard[1].flatten().tolist()}
        self.config = {"original": kind_of(original), "around": around, "image": list(shape), **standardised}
        self._shapes = {name: tuple(original.get_parameter(name).shape) for name in self.axes}
        for site in sites:
            _hang(self, site.name, nn.Parameter(self._stacked(site)))
        for name in self.axes:
            owner, leaf = _owner(original, name)
            weight = owner._parameters.pop(leaf)
            assert weight is not None
            kept = weight.detach() if around == "pretrained" else weight.new_empty(0)
            owner.register_buffer(leaf, kept, persistent=around == "pretrained")
        if around == "pretrained":
            for site in sites:  # differences from the weights that were given
                self.get_parameter(site.name).data.zero_()

    def weight_sites(self) -> list[WeightSite]:
        """The weights that a prior may mask, in the order in which the network uses them."""
        return list(self._sites)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) in [0, 1] to outputs (batch, outputs).

        Raises:
            InputError: if the images are not of the shape of the example.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"images of shape {tuple(images.shape)}: this network was adapted with an example of (batch, "
                f"{', '.join(map(str, self.image_shape))}); resize them, or adapt it with an example of that size"
            )
        standardised = (as_floats(images) - self.mean) / self.std
        found = functional_call(self.original, self.weights(), (standardised,))
        outputs = found if isinstance(found, Tensor) else getattr(found, "logits", None)
        if not isinstance(outputs, Tensor):
            raise InputError(
                f"module={kind_of(self.original)}: returns {kind_of(found)}; needs a tensor (batch, outputs), or an "
                "object that has it as logits"
            )
        return outputs

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`; a batch norm that is frozen keeps its statistics, too."""
        super().train(mode)
        for part in self.original.modules():
            if isinstance(part, _BatchNorm) and (self.frozen or (part.affine and not part.weight.requires_grad)):
                part.eval()
        return self

    def weights(self) -> dict[str, Tensor]:
        """The weights of the original network, by the names of its parameters."""
        every: dict[str, list[Tensor]] = {name: [] for name in self.axes}
        for piece in self.pieces:
            weight: Tensor = reduce(getattr, piece.role.split("."), cast(Any, self))  # a draw, within a functional call
            every[piece.parameter].append(weight if piece.layer is None else weight[piece.layer])
        found = {}
        for name, parts in every.items():
            whole = parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts])
            shape = self._shapes[name]
            if self.axes[name] == (1, 0):
                whole = whole.reshape(shape[1], shape[0]).T
            found[name] = whole.reshape(shape)
            if self.around == "pretrained":
                found[name] = self.original.get_buffer(name) + found[name]
        return found

    def plain(self) -> nn.Module:
        """A network of the original class with the weights as they are, which needs nothing of this package."""
        network, weights = copy.deepcopy(self.original), self.weights()
        for name, weight in weights.items():
            owner, leaf = _owner(network, name)
            owner._buffers.pop(leaf)
            owner._non_persistent_buffers_set.discard(leaf)
            owner.register_parameter(leaf, nn.Parameter(weight.detach().clone()))
        return network

    def _stacked(self, site: WeightSite) -> Tensor:
        """The weights of a site as they are in the original network."""
        parts = []
        for piece in self.pieces:
            if piece.role == site.name:
                weight = self.original.get_parameter(piece.parameter).detach()
                if self.axes[piece.parameter] == (1, 0):
                    weight = weight.T
                parts.append(weight[slice(*piece.rows)])
        return torch.stack(parts).reshape(site.shape).clone()


def adapt(
    module: nn.Module,
    example: Tensor,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    around: Literal["zero", "pretrained"] = "zero",
    train: Literal["all", "masked"] = "all",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Adapted:
    """Make a network of any module that maps images to classes, for `IsingNetwork`.

    Weights of linear maps and of convolutions become sites. Those of one role in repeated blocks, such as
    ``blocks.0.mlp.fc1`` and ``blocks.1.mlp.fc1``, are one site, ``blocks.mlp.fc1``, with a dimension ``layer``. Packed
    weights of attention become three sites. What is not masked stays as it is, and is learned without a prior. What is
    frozen (``requires_grad_(False)``) is not masked, and stays frozen; so do the statistics of a batch norm whose scale
    is. Layers with parametrizations, such as weight norm, have no mask.

    Args:
        module: the network; it is copied. It takes images and returns outputs (batch, classes), or an object that has
            them as ``logits``.
        example: images (batch, channels, height, width) within [0, 1]; one pass is followed, see
            `pyro_isingvit.network.follow`.
        include, exclude: patterns (``*``, ``?``) of names of parameters that are and are not to be masked, without
            ``.weight``.
        around: ``"zero"``: weights are dropped to zero; ``"pretrained"``: to what they are now. Sites are then
            differences from these, and masks say which weights have to change.
        train: whether what is not masked is learned as well (``"all"``), or frozen (``"masked"``), with the statistics
            of batch norms.
        mean, std: mean and standard deviation of each channel, or of all, by which images are standardised. Of several
            and a grey example, the network gets as many channels, each of which is the grey image.

    Raises:
        InputError: if the module has no weight to mask, fails with the example, uses a weight twice, has one under two
            names, or a pattern matches nothing.
    """
    _check_arguments(module, example, around, train)
    original = copy.deepcopy(module)
    standard = _standard(mean, "mean", example), _standard(std, "std", example)
    if not bool((standard[1] > 0).all()):
        raise InputError(f"std={tuple(std)}: must be positive")
    if len({len(part) for part in standard if len(part) > 1}) > 1:
        raise InputError(f"mean={tuple(mean)}, std={tuple(std)}: give as many numbers of both, or one for all channels")
    inputs = (as_floats(example[:1]) - standard[0]) / standard[1]
    passed = follow(original, (inputs,))
    _check_uses(original, passed)
    chosen = _chosen(original, passed, include, exclude)
    sites, pieces, couplings, levels = Roles(original, passed, chosen).made()
    for name, parameter in original.named_parameters():
        if name not in chosen and train == "masked":
            parameter.requires_grad_(False)
    axes = {call.name: call.axes for call in passed.calls if call.name in chosen}
    graph = CouplingGraph(sites, couplings)
    shape = tuple(example.shape[1:])
    network = Adapted(original, sites, pieces, axes, graph, levels, passed.unknown, around, standard, shape)
    network.frozen = train == "masked"
    with torch.no_grad():
        outputs = network.eval()(example[:1])
    network.train(module.training)
    if outputs.dim() != 2:
        raise InputError(f"module={kind_of(module)}: gives {tuple(outputs.shape)} for one image; needs (1, classes)")
    return network


def _check_arguments(module: object, example: object, around: str, train: str) -> None:
    if not isinstance(module, nn.Module):
        raise InputError(f"module={kind_of(module)}: give a torch module")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"module={kind_of(module)}: give module.module; fit(devices=...) takes several devices")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"module={kind_of(module)}: give the module that it was made from; units are followed in Python"
        )
    checked_pixels(example, "example")
    for name, value, known in (("around", around, ("zero", "pretrained")), ("train", train, ("all", "masked"))):
        if value not in known:
            raise InputError(f"{name}={value!r}: choose one of {known}")


def _standard(values: Sequence[float], name: str, example: Tensor) -> Tensor:
    given = torch.tensor(values, dtype=torch.float32)
    if not bool(given.isfinite().all()):
        raise InputError(f"{name}={values}: must be finite numbers")
    if given.dim() != 1 or (len(given) not in (1, example.shape[1]) and example.shape[1] > 1):
        raise InputError(f"{name}={values}: give one number for each of {example.shape[1]} channels, or one for all")
    return given.view(-1, 1, 1)


def _check_uses(module: nn.Module, passed: Pass) -> None:
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InputError(f"module: {name} holds NaN or infinity; load its weights again")
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if first != name:
            raise InputError(f"module: {first} and {name} are one parameter (tied); untie them, or make it without")
    for name, count in Counter(call.name for call in passed.calls).items():
        if count > 1:
            raise InputError(f"module: {name} is used {count} times in a pass; give each use a weight of its own")
    if not passed.calls:
        raise InputError(f"module={kind_of(module)}: no weight of a linear map or convolution in it")


def _chosen(module: nn.Module, passed: Pass, include: Sequence[str], exclude: Sequence[str]) -> dict[str, None]:
    """Names of the parameters to mask, in the order of their use."""
    names = [call.name for call in passed.calls if module.get_parameter(call.name).requires_grad]
    if not names:
        raise InputError("module: all weights that could be masked are frozen; unfreeze some by requires_grad_(True)")
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise InputError(f"{argument}={patterns!r}: give a sequence of patterns, e.g. ({patterns!r},)")
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in names):
                if any(_matches(call.name, pattern) for call in passed.calls):
                    raise InputError(
                        f"{argument}={pattern!r}: what it matches is frozen; use requires_grad_(True) on it"
                    )
                raise InputError(f"{argument}={pattern!r}: matches no weight; there are {[short(n) for n in names]}")
    kept = [
        name
        for name in names
        if any(_matches(name, pattern) for pattern in include)
        and not any(_matches(name, pattern) for pattern in exclude)
    ]
    if not kept:
        raise InputError(f"include={tuple(include)}, exclude={tuple(exclude)}: leave no weight to mask")
    return dict.fromkeys(kept)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(short(name), pattern) or fnmatch(name, pattern)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _hang(network: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a name with dots."""
    *path, leaf = name.split(".")
    place = network
    for part in path:
        if part not in place._modules:
            place.add_module(part, nn.Module())
        place = place.get_submodule(part)
    place.register_parameter(leaf, parameter)
