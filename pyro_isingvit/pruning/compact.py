"""A Vision Transformer from which units have been removed, so that its layers may differ in width.

`pyro_isingvit.prune` makes such networks. `pyro_isingvit.export` writes their weights and, beside them, ``compact.py``:
`network.stem` and this module in one file, so that the folder can be read with torch alone:

.. code-block:: python

    from compact import load

    probs = load("small")(images).softmax(-1)

For this reason, this module imports nothing of the package except the stem.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network.stem import STEMS, Stem, as_floats, check_stem, stem_features

FORMAT, VERSION = "pyro_isingvit.compact", 4
"""The format and version that ``config.json`` must name."""

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
"""The files that `load` reads."""


class LoadError(ValueError):
    """A folder cannot be read; the message is one line that names the file, the problem and the remedy."""


@dataclass(frozen=True)
class Layer:
    """The size of a residual layer, which is either attention or an MLP.

    Attributes:
        block: index of the block that the layer was part of, from 0.
        heads: groups of equal attention heads, each (number of heads, width of query and key, width of value); empty
            for an MLP. A head without query and key attends to all tokens equally.
        hidden: number of hidden units of an MLP; 0 for attention.
    """

    block: int
    heads: tuple[tuple[int, int, int], ...] = ()
    hidden: int = 0


@dataclass(frozen=True)
class CompactConfig:
    """Geometry of a `CompactViT`.

    Attributes:
        image_size, patch_size: height and width.
        channels, classes, dim: colour channels, number of classes, width of the residual stream.
        stem: ``"patches"`` or ``"convolutions"``, see `Stem`.
        layers: the layers that are left, in order.
        patch_features: number of the stem's features that the patch embedding reads.
        classifier_hidden: number of hidden units of the classifier.
        pooling: ``"mean"`` of all tokens, or ``"cls"``.
        position_embedding: whether a position embedding is added to the tokens.
        pixel_mean, pixel_std: mean and standard deviation by which images in [0, 1] are standardised.
        members: number of networks in an ensemble; 1 for a single network.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    classes: int
    dim: int
    stem: str
    layers: tuple[Layer, ...]
    patch_features: int
    classifier_hidden: int
    pooling: str
    position_embedding: bool
    pixel_mean: float
    pixel_std: float
    members: int = 1

    def __post_init__(self) -> None:
        numbers = (self.channels, self.classes, self.dim, self.patch_features, self.classifier_hidden, self.members)
        sizes = (*self.image_size, *self.patch_size)
        if not all(isinstance(n, int) and n > 0 for n in (*numbers, *sizes)):
            raise ValueError("sizes must be positive integers")
        if len(sizes) != 4 or any(size % patch for size, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError("patch_size does not divide image_size")
        if self.stem not in STEMS:
            raise ValueError("stem is unknown")
        check_stem(self.stem, self.image_size, self.patch_size)
        if self.patch_features > self.stem_features:
            raise ValueError("there are more patch_features than the stem makes")
        if self.pooling not in ("mean", "cls") or not isinstance(self.position_embedding, bool):
            raise ValueError("pooling or position_embedding is unknown")
        if not (math.isfinite(self.pixel_mean) and math.isfinite(self.pixel_std) and self.pixel_std > 0):
            raise ValueError("pixel_mean or pixel_std is out of range")
        for layer in self.layers:
            heads = all(number > 0 and looks >= 0 and width > 0 for number, looks, width in layer.heads)
            if not heads or layer.hidden < 0 or bool(layer.heads) == bool(layer.hidden):
                raise ValueError("a layer has either heads or hidden units, of positive size")

    @property
    def stem_features(self) -> int:
        """Number of features that the stem makes for each token, ``patch_features`` of which are read."""
        return stem_features(self.stem, self.channels, self.patch_size, self.dim)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CompactConfig":
        """The inverse of `dataclasses.asdict`; lists are accepted in place of tuples.

        Raises:
            TypeError, KeyError: if a field is missing or unknown.
        """
        layers = tuple(
            Layer(**{**layer, "heads": tuple((int(n), int(qk), int(v)) for n, qk, v in layer["heads"])})
            for layer in values["layers"]
        )
        sizes = {name: tuple(values[name]) for name in ("image_size", "patch_size")}
        return cls(**{**values, **sizes, "layers": layers})


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., inputs) -> (..., outputs); with members, (members, ..., inputs) -> (members, ..., outputs)."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    y = x.flatten(1, -2) @ weight.mT
    y = y if bias is None else y + bias.unsqueeze(1)
    return y.unflatten(1, x.shape[1:-1])


class _Part(nn.Module):
    """A module whose parameters start at zero, with one copy for each member of an ensemble."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self._members = () if members == 1 else (members,)

    def empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(*self._members, *shape))


class Norm(_Part):
    """LayerNorm."""

    def __init__(self, dim: int, members: int) -> None:
        super().__init__(members)
        self.weight, self.bias = self.empty(dim), self.empty(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        size = x.shape[-1:]
        if self.weight.dim() == 1:
            return F.layer_norm(x, size, self.weight, self.bias)
        weight, bias = (p[:, None, None] for p in (self.weight, self.bias))
        return F.layer_norm(x, size) * weight + bias


class Attention(_Part):
    """Pre-norm attention whose heads may differ in width. The query includes the scale of the attention scores."""

    def __init__(self, dim: int, groups: tuple[tuple[int, int, int], ...], members: int) -> None:
        super().__init__(members)
        self.groups = groups
        looks, values = (sum(group[0] * group[i] for group in groups) for i in (1, 2))
        self.norm = Norm(dim, members)
        # The bias of a key cancels in the softmax, and that of a value adds a constant, so neither is needed.
        self.query, self.query_bias, self.key = self.empty(looks, dim), self.empty(looks), self.empty(looks, dim)
        self.value, self.out, self.bias = self.empty(values, dim), self.empty(dim, values), self.empty(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., tokens, dim) -> (..., tokens, dim)."""
        z = self.norm(x)
        query, key = _linear(z, self.query, self.query_bias), _linear(z, self.key)
        value = _linear(z, self.value)
        mixed, look, at = [], 0, 0
        for heads, looks, width in self.groups:
            v = value[..., at : at + heads * width]
            if looks:
                q, k = (_by_head(part[..., look : look + heads * looks], heads) for part in (query, key))
                weights = (q @ k.mT).softmax(-1)
                mixed.append((weights @ _by_head(v, heads)).transpose(-3, -2).flatten(-2))
            else:
                mixed.append(v.mean(-2, keepdim=True).expand_as(v))
            look, at = look + heads * looks, at + heads * width
        return x + _linear(torch.cat(mixed, -1), self.out, self.bias)


def _by_head(z: Tensor, heads: int) -> Tensor:
    """(..., tokens, heads * width) -> (..., heads, tokens, width)."""
    return z.unflatten(-1, (heads, -1)).transpose(-3, -2)


class MLP(_Part):
    """Pre-norm MLP."""

    def __init__(self, dim: int, hidden: int, members: int) -> None:
        super().__init__(members)
        self.norm = Norm(dim, members)
        self.up, self.up_bias = self.empty(hidden, dim), self.empty(hidden)
        self.down, self.bias = self.empty(dim, hidden), self.empty(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., tokens, dim) -> (..., tokens, dim)."""
        return x + _linear(F.gelu(_linear(self.norm(x), self.up, self.up_bias)), self.down, self.bias)


class CompactViT(_Part):
    """A plain Vision Transformer with layers of uneven width, or an ensemble of such networks of the same shape.

    Its parameters start at zero; `pyro_isingvit.prune` and `load` fill them.

    Args:
        config: geometry of the network. With several ``members``, these are the first dimension of each parameter
            except those of the stem, which all members share.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__(config.members)
        self.config = config
        dim, whole = config.dim, config.stem_features
        tokens = math.prod(size // patch for size, patch in zip(config.image_size, config.patch_size, strict=True))
        self.stem = Stem(config.stem, config.channels, config.patch_size, dim)  # the same for all members
        # Indices of the stem's features that are read; None if all of them are.
        index = torch.zeros(config.patch_features, dtype=torch.long) if config.patch_features < whole else None
        self.patch_index: Tensor | None
        self.register_buffer("patch_index", index)
        self.patch_embed, self.patch_embed_bias = self.empty(dim, config.patch_features), self.empty(dim)
        self.class_token = self.empty(dim) if config.pooling == "cls" else None
        self.position = self.empty(tokens + (config.pooling == "cls"), dim) if config.position_embedding else None
        self.layers = nn.ModuleList(
            MLP(dim, layer.hidden, config.members) if layer.hidden else Attention(dim, layer.heads, config.members)
            for layer in config.layers
        )
        self.norm = Norm(dim, config.members)
        self.hidden, self.hidden_bias = self.empty(config.classifier_hidden, dim), self.empty(config.classifier_hidden)
        self.out, self.out_bias = self.empty(config.classes, config.classifier_hidden), self.empty(config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width), floats in [0, 1] or bytes, to logits.

        Returns:
            (batch, classes); with several members (members, batch, classes), of which ``softmax(-1).mean(0)`` is the
            posterior predictive.

        Raises:
            ValueError: if the images are not of the configured size.
        """
        config = self.config
        if images.dim() != 4 or images.shape[1:] != (config.channels, *config.image_size):
            raise ValueError(
                f"images of shape {tuple(images.shape)}: this network takes "
                f"(batch, {config.channels}, {config.image_size[0]}, {config.image_size[1]}); resize them"
            )
        patches = self.stem((as_floats(images) - config.pixel_mean) / config.pixel_std)
        if self.patch_index is not None:
            patches = patches.index_select(-1, self.patch_index)
        if config.members > 1:
            patches = patches.expand(config.members, -1, -1, -1)
        x = _linear(patches, self.patch_embed, self.patch_embed_bias)
        if self.class_token is not None:
            first = self.class_token[..., None, None, :]
            x = torch.cat([first.expand(*x.shape[:-2], 1, -1), x], -2)
        if self.position is not None:
            x = x + self.position.unsqueeze(-3)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        x = x.mean(-2) if self.class_token is None else x[..., 0, :]
        return _linear(F.relu(_linear(x, self.hidden, self.hidden_bias)), self.out, self.out_bias)


def describe(config: CompactConfig, weights: str) -> str:
    """The text of ``config.json`` for a network, given the SHA-256 of the file of its weights."""
    facts = {"format": FORMAT, "version": VERSION, **asdict(config), "weights": weights}
    return json.dumps(facts | {"sha256": _digest(facts)}, indent=2) + "\n"


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def load(folder: str | Path) -> CompactViT:
    """Read a network that `pyro_isingvit.export` wrote, in evaluation mode.

    Raises:
        LoadError: if a file is missing, damaged, or of another format or version.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise LoadError(f"folder={str(folder)!r}: no {name} there; give a folder that pyro_isingvit.export wrote")
    path = folder / CONFIG
    try:
        facts = dict(json.loads(path.read_text(encoding="utf-8")))
        data = (folder / WEIGHTS).read_bytes()
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise LoadError(f"{path}: not JSON ({error}); export again") from None
    if facts.get("format") != FORMAT:
        raise LoadError(f"{path}: no network of format {FORMAT!r}; give a folder that pyro_isingvit.export wrote")
    if (version := facts.get("version")) != VERSION:
        raise LoadError(f"{path}: version={version!r}, and this code reads {VERSION}; use the compact.py of its folder")
    if facts.pop("sha256", None) != _digest(facts):
        raise LoadError(f"{path}: was changed or damaged since it was written; export again")
    if facts.pop("weights", None) != hashlib.sha256(data).hexdigest():
        raise LoadError(f"{folder / WEIGHTS}: not the weights of {CONFIG}, or damaged; export again")
    facts = {name: value for name, value in facts.items() if name not in ("format", "version")}
    try:
        config = CompactConfig.from_dict(facts)
        network = CompactViT(config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LoadError(f"{path}: does not describe a network ({error!r}); export again") from None
    tensors = read_safetensors(data, folder / WEIGHTS)
    try:
        network.load_state_dict(tensors)
        if network.patch_index is not None and not _within(network.patch_index, config):
            raise RuntimeError("patch_index is out of range")
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise LoadError(f"{folder / WEIGHTS}: not the weights of {CONFIG} ({problem}); export again") from None
    return network.eval()


def _within(index: Tensor, config: CompactConfig) -> bool:
    return int(index.min()) >= 0 and int(index.max()) < config.stem_features


_DTYPES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def read_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Read all tensors from the contents of a safetensors file at ``path``.

    The file consists of the length of the header in eight bytes, the header as JSON, and the raw numbers.

    Raises:
        LoadError: if the file is damaged.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        body, tensors = memoryview(bytearray(data[8 + length :])), {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
                if end > len(body) or end - begin != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} is cut off")
                empty = end == begin
                raw = torch.empty(0, dtype=dtype) if empty else torch.frombuffer(body[begin:end], dtype=dtype)
                tensors[name] = raw.reshape(shape)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise LoadError(f"{path}: cannot be read ({error}); export again") from None
    return tensors
