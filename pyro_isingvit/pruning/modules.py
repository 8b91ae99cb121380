"""Cut modules that `adapt` has made networks of: the result is a plain module of the class that was given."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..adapted import Adapted
from ..errors import InputError, kind_of
from ..files import home, read_tensors, write_tensors
from ..network.stem import as_floats
from ..posterior import Posterior
from .exported import MODULE

STEADY = 1e-5
"""Largest difference between values of a unit that is taken for a constant."""


class OnImages(nn.Module):
    """A module behind the standardisation of its images, floats within [0, 1] or bytes; gives logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, images: Tensor) -> Tensor:
        found = self.module((as_floats(images) - self.mean) / self.std)
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        return logits


@dataclass(frozen=True)
class PrunedModule:
    """A module whose decided units are cut, and what was cut.

    Attributes:
        module: a plain module of the original class, in evaluation mode, on the CPU. Weights that are dropped but
            cannot be cut are zeros.
        units: a table with a row for the outputs of each layer: ``layer``, ``units``, ``cut``, and ``kept_because``,
            why those that nothing reads were not cut.
        network: the same module for images within [0, 1], which it standardises; gives logits (batch, classes).
        history: what was cut, in order, as `torch_pruning.DependencyGraph.load_pruning_history` reads it.
    """

    module: nn.Module
    units: pd.DataFrame
    network: OnImages
    history: tuple[Any, ...]

    @property
    def weights(self) -> int:
        """Number of parameters that are not zero."""
        return sum(int(p.count_nonzero()) for p in self.module.parameters())

    def save(self, folder: str | Path) -> None:
        """Write ``pruned.safetensors``: the state, what was cut, and how images are standardised. No pickle."""
        folder = home(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        standard = {name: getattr(self.network, name).flatten().tolist() for name in ("mean", "std")}
        write_tensors(folder / MODULE, state, {"history": [list(each) for each in self.history], **standard})


def prune_module(posterior: Posterior, example: Tensor) -> PrunedModule:
    """Cut the median-probability model of an adapted network, see `pyro_isingvit.adapt`, by `torch_pruning`.

    An output of a linear map or convolution is cut if nothing reads it: if the weights of all that read it are dropped.
    If its own weights are dropped, its constant contribution is first added to the bias of linear maps that read it. It
    is left where cutting would change a LayerNorm or GroupNorm, or a packed weight. Outputs are those of
    `Posterior.network`, to rounding.

    Args:
        posterior: a posterior of a network that `adapt` has made; no mixture.
        example: images (batch, channels, height, width) within [0, 1], two at the least.

    Raises:
        InputError: if the network was not adapted, is ``around="pretrained"``, or torch-pruning is not installed.
    """
    network = posterior.model.network
    if not isinstance(network, Adapted):
        raise InputError(f"network={kind_of(network)}: only networks that adapt has made; use prune for a ViT")
    if network.around == "pretrained":
        raise InputError("around='pretrained': dropped weights are what they were, so that nothing can be cut")
    if example.dim() != 4 or len(example) < 2 or tuple(example.shape[1:]) != network.image_shape:
        wanted = ", ".join(map(str, network.image_shape))
        raise InputError(f"example of shape {tuple(example.shape)}: give (batch, {wanted}), two images at the least")
    if len(posterior.guides) > 1:
        raise InputError(
            f"posterior: a mixture of {len(posterior.guides)}, and one module is cut; cut one of posterior.members, or "
            "fit one member"
        )
    tp = _torch_pruning()
    median = posterior.network().cpu()
    assert isinstance(median, Adapted)
    module = median.plain().eval().requires_grad_(True)
    images = (example.cpu() - median.mean) / median.std
    layers = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and f"{name}.weight" in network.axes
    }
    graph = _graph(tp, module, images[:1])
    rows = []
    for name, layer in layers.items():
        reason, cut, total = "", 0, layer.weight.shape[0]
        readers = _readers(graph, tp, layer)
        if isinstance(readers, str):
            reason = readers
        elif readers:
            _fold(module, layer, readers, images)
            dead = _unread(layer, readers)
            if bool((_silent(layer) & ~torch.isin(torch.arange(total), dead)).any()):
                reason = "without weights, but a layer that cannot take their constant reads them"
            if len(dead) == total:
                dead = dead[1:]
            if len(dead):
                group = graph.get_pruning_group(layer, _cutter(tp, layer), idxs=dead.tolist())
                group.prune()
                cut = len(dead)
        rows.append({"layer": name, "units": total, "cut": cut, "kept_because": reason})
    history = tuple(tuple(each) for each in graph.pruning_history())
    network = OnImages(module.requires_grad_(True), median.mean, median.std).eval()
    return PrunedModule(module.eval(), pd.DataFrame(rows), network, history)


def load_module(folder: str | Path, module: nn.Module, example: Tensor) -> OnImages:
    """Read what `PrunedModule.save` wrote.

    Args:
        folder: the folder.
        module: a module of the original class and geometry; it is copied.
        example: images (batch, channels, height, width) within [0, 1], one at the least.

    Returns:
        The network for images within [0, 1], as `PrunedModule.network`; its ``module`` is the one that was cut.

    Raises:
        InputError: if a file is missing or damaged, or the module is another one.
    """
    tp = _torch_pruning()
    path = home(folder) / MODULE
    if not path.is_file():
        raise InputError(f"folder={str(folder)!r}: no {MODULE} there; give a folder that PrunedModule.save wrote")
    state, facts = read_tensors(path)
    module = copy.deepcopy(module).cpu().eval().requires_grad_(True)
    try:
        mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
        graph = _graph(tp, module, (as_floats(example[:1]) - mean) / std)
        graph.load_pruning_history(facts["history"])
        module.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        said = " ".join(str(error).split())[:160]
        raise InputError(f"module={kind_of(module)}: not what {path} was cut from ({said})") from None
    return OnImages(module.eval(), mean, std).eval()


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise InputError("prune_module: needs torch-pruning; pip install 'pyro-isingvit[pruning]'") from None
    return torch_pruning


def _graph(tp: Any, module: nn.Module, example: Tensor) -> Any:
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # what they belong to is not cut
        return tp.DependencyGraph().build_dependency(module, example_inputs=example)


Layer = nn.Linear | nn.Conv2d


def _cutter(tp: Any, layer: Layer) -> Any:
    return tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels


Readers = Mapping[Layer, Sequence[int]]
"""Layers that read the outputs of a layer, with the column of each output."""


def _readers(graph: Any, tp: Any, layer: Layer) -> Readers | str:
    """The layers that read the outputs of a layer; why these cannot be cut, if they cannot."""
    total = layer.weight.shape[0]
    try:
        group = graph.get_pruning_group(layer, _cutter(tp, layer), idxs=list(range(total)))
    except (ValueError, KeyError, AttributeError, IndexError) as error:
        return f"cannot be followed ({type(error).__name__})"
    readers: dict[Layer, list[int]] = {}
    for dependency, indices in group:
        part, handler = dependency.target.module, dependency.handler
        if isinstance(part, nn.LayerNorm | nn.GroupNorm):
            return "a norm reads all of them"
        if isinstance(part, nn.Parameter | nn.MultiheadAttention):
            return "shared with a parameter or packed weight"
        if isinstance(part, nn.Linear | nn.Conv2d):
            writes = handler in (tp.prune_conv_out_channels, tp.prune_linear_out_channels)
            if writes and part is not layer:
                return "other layers write to them too"
            if not writes:
                if part in readers or len(indices) != total or part.weight.shape[1] != total:
                    return "read in parts"
                readers[part] = list(indices)
    return readers or "outputs of the network"


def _unread(layer: Layer, readers: Readers) -> Tensor:
    """Outputs whose weights are dropped in all layers that read them."""
    dead = torch.ones(layer.weight.shape[0], dtype=torch.bool)
    for reader, columns in readers.items():
        weight = reader.weight.detach()
        dead &= (
            (weight[:, columns].flatten(2) if weight.dim() > 2 else weight[:, columns].unsqueeze(2)).eq(0).all(2).all(0)
        )
    return dead.nonzero().flatten()


@torch.no_grad()
def _fold(module: nn.Module, layer: Layer, readers: Readers, images: Tensor) -> None:
    """Add what outputs without weights contribute, which is constant, to the biases of linear maps that read them.

    Layers that have no bias, or pad their input, take constants of zero alone.
    """
    silent = _silent(layer)
    if not bool(silent.any()):
        return
    for reader, columns in readers.items():
        for values in _inputs_of(reader, module, images):
            flat = (values.movedim(1, -1) if isinstance(reader, nn.Conv2d) else values).flatten(0, -2)[:, columns]
            steady = silent & ((flat.amax(0) - flat.amin(0)) <= STEADY)
            if isinstance(reader, nn.Conv2d) or reader.bias is None:
                steady &= flat.eq(0).all(0)
            own = torch.tensor(columns)[steady]
            if isinstance(reader, nn.Linear) and reader.bias is not None:
                reader.bias.add_(reader.weight[:, own] @ flat[0, steady])
            reader.weight[:, own] = 0


def _silent(layer: Layer) -> Tensor:
    """Whether an output has no weights."""
    return layer.weight.detach().flatten(1).eq(0).all(1)


def _inputs_of(reader: Layer, module: nn.Module, images: Tensor) -> Iterator[Tensor]:
    kept: list[Tensor] = []
    hook = reader.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    module(images)
    hook.remove()
    yield from kept
