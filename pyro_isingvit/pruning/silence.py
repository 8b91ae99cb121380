"""Units that go leave their mean behind as a bias, taken at the centre of the LayerNorm before them, or of pixels."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diagnostics.inclusion import Unit

Parameters = dict[str, Tensor]
"""Of a `ViT`, by name, in doubles on the CPU."""


def _silence_hidden(p: Parameters, gone: Tensor) -> None:
    up, down = p["encoder.up"], p["encoder.down"]
    centre = torch.einsum("lhd,ld->lh", up, p["encoder.mlp_norm_bias"]) + p["encoder.up_bias"]
    p["encoder.down_bias"] = p["encoder.down_bias"] + torch.einsum("ldh,lh->ld", down, F.gelu(centre) * gone)
    p["encoder.up"], p["encoder.down"] = up * ~gone.unsqueeze(2), down * ~gone.unsqueeze(1)


def _silence_head_dims(p: Parameters, gone: Tensor) -> None:
    value, out = p["encoder.value"], p["encoder.out"]
    bias = p["encoder.value_bias"].view(gone.shape)
    centre = torch.einsum("lnkd,ld->lnk", value, p["encoder.attention_norm_bias"]) + bias
    p["encoder.out_bias"] = p["encoder.out_bias"] + torch.einsum("ldnk,lnk->ld", out, centre * gone)
    p["encoder.value"], p["encoder.out"] = value * ~gone.unsqueeze(3), out * ~gone.unsqueeze(1)


def _silence_query_keys(p: Parameters, gone: Tensor) -> None:
    query, bias = p["encoder.query"], p["encoder.query_bias"].view(gone.shape)
    centre = torch.einsum("lnkd,ld->lnk", query, p["encoder.attention_norm_bias"]) + bias
    p["encoder.query_bias"] = torch.where(gone, centre, bias).flatten(1)
    p["encoder.query"] = query * ~gone.unsqueeze(3)


def _silence_heads(p: Parameters, gone: Tensor) -> None:
    _silence_head_dims(p, gone.unsqueeze(2).expand(p["encoder.value"].shape[:3]))


def _silence_blocks(p: Parameters, gone: Tensor) -> None:
    _silence_heads(p, gone.unsqueeze(1).expand(p["encoder.value"].shape[:2]))
    _silence_hidden(p, gone.unsqueeze(1).expand(p["encoder.up"].shape[:2]))


def _silence_patches(p: Parameters, gone: Tensor) -> None:
    p["patch_embed_bias"] = p["patch_embed_bias"] + p["patch_embed"] @ (_plain_features(p) * gone)
    p["patch_embed"] = p["patch_embed"] * ~gone


def _plain_features(p: Parameters) -> Tensor:
    """What a token of a plain image, every pixel at its mean, is computed from, away from the border."""
    convolutions = sorted(name.removesuffix(".weight") for name in p if name.startswith("stem.") and "weight" in name)
    features = p["patch_embed"].new_zeros(p["patch_embed"].shape[1])
    if not convolutions:
        return features
    x = features.new_zeros(p[f"{convolutions[0]}.weight"].shape[1])
    for name in convolutions:
        x = F.gelu(p[f"{name}.weight"].sum((2, 3)) @ x + p[f"{name}.bias"])
    return x.repeat_interleave(len(features) // len(x))


def _silence_classifier(p: Parameters, gone: Tensor) -> None:
    centre = p["classifier.hidden"] @ p["norm.bias"] + p["classifier.hidden_bias"]
    p["classifier.out_bias"] = p["classifier.out_bias"] + p["classifier.out"] @ (F.relu(centre) * gone)
    p["classifier.hidden"], p["classifier.out"] = (
        p["classifier.hidden"] * ~gone.unsqueeze(1),
        p["classifier.out"] * ~gone,
    )


SILENCE: Mapping[Unit, Callable[[Parameters, Tensor], None]] = {
    "hidden": _silence_hidden,
    "head_dim": _silence_head_dims,
    "query_key": _silence_query_keys,
    "head": _silence_heads,
    "block": _silence_blocks,
    "patch": _silence_patches,
    "classifier_hidden": _silence_classifier,
}
"""For each unit, what puts its mean in its place: the parameters, and booleans of the units that go."""
