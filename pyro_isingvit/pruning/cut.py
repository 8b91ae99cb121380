"""Remove the dead parts of a `ViT`, and fold their constant contributions into the biases.

Which parts are dead is read off the weights:

* A unit without ingoing weights is constant; its contribution is folded into the next bias.
* A unit without outgoing weights is dropped.
* A layer without units adds the same vector to every token; it is folded into the bias of the layer before it, or into
  the embeddings.

Removing dead parts does not change the function that the network computes, up to rounding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..network import ViT, ViTConfig
from ..network.units import UNITS
from .compact import CompactConfig, CompactViT, Layer
from .silence import Parameters, silence


@dataclass(frozen=True)
class Head:
    """What is left of an attention head.

    Attributes:
        query, query_bias: (looks, dim) and (looks,), multiplied by the scale of the attention scores.
        key: (looks, dim).
        value: (width, dim).
        out: (dim, width).
    """

    query: Tensor
    query_bias: Tensor
    key: Tensor
    value: Tensor
    out: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Widths of query and value."""
        return len(self.query), len(self.value)


@dataclass(frozen=True)
class Part:
    """What is left of a residual layer, which is either attention or an MLP.

    Attributes:
        block: index of the block that the layer is part of, from 0.
        norm: weight and bias of its LayerNorm, each (dim,).
        bias: the constant that the layer adds to every token, (dim,).
        heads: heads of attention.
        mlp: up (hidden, dim), up_bias (hidden,) and down (dim, hidden) of an MLP; None for attention.
    """

    block: int
    norm: tuple[Tensor, Tensor]
    bias: Tensor
    heads: tuple[Head, ...] = ()
    mlp: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def alive(self) -> bool:
        """Whether the layer does more than add its constant."""
        return bool(self.heads) or (self.mlp is not None and len(self.mlp[0]) > 0)


@dataclass(frozen=True)
class Cut:
    """A network taken apart into what is left of it.

    Attributes:
        config: geometry of the whole network.
        patches: booleans over the patch features, true for those that are read.
        parts: what is left of each residual layer, in order.
        classifier: hidden (units, dim), hidden_bias (units,), out (classes, units) and out_bias (classes,).
        rest: the parameters that stay as they are, by name.
    """

    config: ViTConfig
    patches: Tensor
    parts: tuple[Part, ...]
    classifier: tuple[Tensor, Tensor, Tensor, Tensor]
    rest: Parameters


def shrink(
    network: ViT, weights: Mapping[str, Tensor] | None = None, kept: Mapping[str, Tensor] | None = None
) -> CompactViT:
    """Remove the dead parts of a network, and the units that are not kept.

    The convolutions of a stem are not cut.

    Args:
        network: the network to cut; it is not changed.
        weights: weights in place of the network's own, by parameter name, zero where they are cut.
        kept: booleans over the units, by the name of the kind of unit in `network.units.UNITS`; false for those to cut.
            The mean contribution of a unit that is cut stays as a bias, see `pyro_isingvit.pruning.silence`.

    Raises:
        InputError: if the output of what is left does not depend on the image.
    """
    return assemble(take_apart(network, weights, kept))


def scale_within(network: ViT, weights: Mapping[str, Tensor], logit_scale: float) -> dict[str, Tensor]:
    """Weights by parameter name, with the logit scale multiplied into the last layer and its bias."""
    bias = network.classifier.out_bias.detach() * logit_scale
    return {**weights, "classifier.out": weights["classifier.out"] * logit_scale, "classifier.out_bias": bias}


def take_apart(
    network: ViT, weights: Mapping[str, Tensor] | None = None, kept: Mapping[str, Tensor] | None = None
) -> Cut:
    """Take a network apart and drop its dead units; see `shrink`. A layer without units stays, as a constant."""
    config, given = network.config, dict[str, Tensor](network.named_parameters())
    for name, weight in (weights or {}).items():
        if name not in given or given[name].shape != weight.shape:
            raise InputError(
                f"weights: {name!r} of shape {tuple(weight.shape)} is none of the network's parameters, "
                f"{ {known: tuple(value.shape) for known, value in given.items()} }"
            )
        given[name] = weight
    p = {name: value.detach().cpu().double() for name, value in given.items()}
    for unit, stays in (kept or {}).items():
        if unit not in UNITS:
            raise InputError(f"kept: no unit {unit!r}; choose of {list(UNITS)}")
        try:
            silence(p, UNITS[unit], ~stays.cpu().bool())
        except RuntimeError:
            raise InputError(f"kept: {unit!r} of shape {tuple(stays.shape)} does not fit the network") from None
    parts = []
    for block in range(config.depth):
        parts += [_attention(p, block), _mlp(p, block)]
    live = _alive(p["classifier.hidden"], p["classifier.out"])
    constant = p["classifier.out"] @ (F.relu(p["classifier.hidden_bias"]) * ~p["classifier.hidden"].bool().any(1))
    classifier = (
        p["classifier.hidden"][live],
        p["classifier.hidden_bias"][live],
        p["classifier.out"][:, live],
        p["classifier.out_bias"] + constant,
    )
    names = ("patch_embed", "patch_embed_bias", "class_token", "position", "norm.weight", "norm.bias")
    rest = {name: value for name, value in p.items() if name in names or name.startswith("stem.")}
    return Cut(config, p["patch_embed"].bool().any(0), tuple(parts), classifier, rest)


def assemble(cut: Cut) -> CompactViT:
    """Build a compact network from the parts that are left.

    Raises:
        InputError: if its output does not depend on the image.
    """
    hidden, hidden_bias, out, out_bias = cut.classifier
    for what, number in (("patch feature", int(cut.patches.sum())), ("hidden unit of the classifier", len(hidden))):
        if not number:
            raise InputError(
                f"nothing is left of the network: no {what}, so that it says the same of every image; "
                "lower threshold, raise density, or fit at a lower temperature"
            )
    rest, parts = dict(cut.rest), []
    for part in cut.parts:
        if part.alive:
            parts.append(part)
        elif parts:
            parts[-1] = replace(parts[-1], bias=parts[-1].bias + part.bias)
        else:
            for name in ("position",) if "position" in rest else ("patch_embed_bias", "class_token"):
                if name in rest:
                    rest[name] = rest[name] + part.bias
    config, layers, tensors = cut.config, [], dict[str, Tensor]()
    if "class_token" in rest:
        rest["class_token"] = rest["class_token"].flatten()
    for i, part in enumerate(parts):
        layer, named = _layer(part)
        layers.append(layer)
        named |= {"norm.weight": part.norm[0], "norm.bias": part.norm[1], "bias": part.bias}
        tensors |= {f"layers.{i}.{name}": value for name, value in named.items()}
    tensors |= rest | {"hidden": hidden, "hidden_bias": hidden_bias, "out": out, "out_bias": out_bias}
    tensors["patch_embed"] = tensors["patch_embed"][:, cut.patches]
    if not cut.patches.all():
        tensors["patch_index"] = cut.patches.nonzero().squeeze(1)
    compact = CompactConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        channels=config.channels,
        classes=config.classes,
        dim=config.dim,
        stem=config.stem,
        layers=tuple(layers),
        patch_features=int(cut.patches.sum()),
        classifier_hidden=len(hidden),
        pooling=config.pooling,
        position_embedding=config.position_embedding,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
    )
    network = CompactViT(compact)
    network.load_state_dict(tensors)
    return network.eval()


def _alive(into: Tensor, out: Tensor) -> Tensor:
    """Whether each unit has an ingoing and an outgoing weight: (units, n) and (m, units) to (units,)."""
    return into.bool().any(1) & out.bool().any(0)


def _attention(p: Parameters, block: int) -> Part:
    query, key, value, out = (p[f"encoder.{role}"][block] for role in ("query", "key", "value", "out"))
    heads, width, _ = query.shape
    query_bias, value_bias = (p[f"encoder.{role}_bias"][block].view(heads, width) for role in ("query", "value"))
    # Attention weights sum to one, so the bias of a value contributes a constant. The bias of a key adds the same
    # number to all scores of a query, which cancels in the softmax.
    bias = p["encoder.out_bias"][block] + out.flatten(1) @ value_bias.flatten()
    left = []
    for h in range(heads):
        live = _alive(value[h], out[:, h])
        if not live.any():
            continue
        asks, answers = query[h].bool().any(1), key[h].bool().any(1)
        varying = asks & answers
        # Query units without ingoing weights are the same for all tokens, so one unit can replace all of them.
        constant = (query_bias[h] * ~asks) @ key[h]
        rows, biases, keys = query[h][varying], query_bias[h][varying], key[h][varying]
        if constant.any():
            rows = torch.cat([rows, torch.zeros_like(constant).unsqueeze(0)])
            biases = torch.cat([biases, biases.new_ones(1)])
            keys = torch.cat([keys, constant.unsqueeze(0)])
        scale = 1 / math.sqrt(width)
        left.append(Head(rows * scale, biases * scale, keys, value[h][live], out[:, h][:, live]))
    norm = p["encoder.attention_norm"][block], p["encoder.attention_norm_bias"][block]
    return Part(block, norm, bias, heads=tuple(left))


def _mlp(p: Parameters, block: int) -> Part:
    up, down, up_bias = p["encoder.up"][block], p["encoder.down"][block], p["encoder.up_bias"][block]
    live = _alive(up, down)
    bias = p["encoder.down_bias"][block] + down @ (F.gelu(up_bias) * ~up.bool().any(1))
    norm = p["encoder.mlp_norm"][block], p["encoder.mlp_norm_bias"][block]
    return Part(block, norm, bias, mlp=(up[live], up_bias[live], down[:, live]))


def _layer(part: Part) -> tuple[Layer, Parameters]:
    """The size of a layer, and its parameters by name."""
    if part.mlp is not None:
        up, up_bias, down = part.mlp
        return Layer(part.block, hidden=len(up)), {"up": up, "up_bias": up_bias, "down": down}
    heads = sorted(part.heads, key=lambda head: head.size, reverse=True)
    sizes = [(size, len(list(group))) for size, group in groupby(heads, key=lambda head: head.size)]
    tensors = {
        name: torch.cat([getattr(head, name) for head in heads]) for name in ("query", "query_bias", "key", "value")
    }
    tensors["out"] = torch.cat([head.out for head in heads], 1)
    return Layer(part.block, heads=tuple((number, looks, width) for (looks, width), number in sizes)), tensors
