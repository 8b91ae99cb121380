"""A plain torch Vision Transformer whose weights are stacked by role.

References:
    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

import math
from numbers import Integral
from typing import Annotated, Literal, Self

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..errors import InputError
from .sites import Linear, WeightSite, linear
from .stem import Stem, as_floats, check_stem, stem_features
from .units import SITES

MOST_UNITS, MOST_WEIGHTS = 2**16, 2**32
"""Largest widths and number of weights that are taken for meant."""

PATCHES = 3.5
"""Least number of patches along a side, where their size is not given."""

Side = Annotated[int, pydantic.Field(ge=1, le=2**14)]
"""A height or width in pixels."""


class ViTConfig(Config):
    """Geometry of a `ViT`. The defaults are the small MNIST geometry of the published study.

    Attributes:
        image_size: height and width of an image.
        channels: colour channels.
        patch_size: height and width of a patch; has to divide the image.
        stem: what tokens are computed from: ``"patches"``, the pixels of each patch; or ``"convolutions"``, see `Stem`.
            The last convolution is the site ``patch_embed``; those before it are learned without a prior, as biases
            are.
        classes: number of classes; or of outputs, where the likelihood is not of classes.
        dim: width of the residual stream; a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_ratio: hidden units of a block's MLP, in multiples of ``dim``.
        classifier_hidden: hidden units of the classifier; ``dim // 2`` if None.
        pooling: what the classifier reads: the ``"mean"`` of all tokens, or a class token (``"cls"``).
        position_embedding: whether a learned position embedding is added to the tokens (the published model has none).
        dropout: share of activations that training sets to zero, after the patch embedding and after every linear layer
            of a block except query, key and value.
        pixel_mean, pixel_std: mean and standard deviation by which the network standardises images in [0, 1].

    Raises:
        InputError: if a value is out of range, or the sizes are incompatible.
    """

    image_size: tuple[Side, Side] = (28, 28)
    channels: int = pydantic.Field(default=1, ge=1, le=MOST_UNITS)
    patch_size: tuple[Side, Side] = (7, 7)
    stem: Literal["patches", "convolutions"] = "patches"
    classes: int = pydantic.Field(default=10, ge=1, le=1_000_000)
    dim: int = pydantic.Field(default=32, ge=1, le=MOST_UNITS)
    depth: int = pydantic.Field(default=2, ge=1, le=1000)
    heads: int = pydantic.Field(default=4, ge=1, le=MOST_UNITS)
    mlp_ratio: float = pydantic.Field(default=16, gt=0, le=1000)
    classifier_hidden: int | None = pydantic.Field(default=None, ge=1, le=MOST_UNITS)
    pooling: Literal["mean", "cls"] = "mean"
    position_embedding: bool = True
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    pixel_mean: float = 0.5
    pixel_std: pydantic.PositiveFloat = 0.5

    @pydantic.field_validator("image_size", "patch_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, Integral) else value

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Self:
        for size, patch in zip(self.image_size, self.patch_size, strict=True):
            if size % patch:
                raise ValueError(
                    f"patch_size={patch} does not divide image_size={size}; "
                    f"choose one of {[p for p in range(1, size + 1) if size % p == 0]}"
                )
        if self.dim % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide dim={self.dim}; "
                f"choose one of {[h for h in range(1, self.dim + 1) if self.dim % h == 0]}"
            )
        check_stem(self.stem, self.image_size, self.patch_size)
        if self.hidden < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} leaves no hidden unit at dim={self.dim}; choose a larger one")
        if self.weights > MOST_WEIGHTS:
            raise ValueError(
                f"dim={self.dim}, depth={self.depth}, mlp_ratio={self.mlp_ratio}: {self.weights:,} weights are more "
                f"than {MOST_WEIGHTS:,}; make the network smaller"
            )
        return self

    @property
    def weights(self) -> int:
        """Number of weights of the network's matrices."""
        block = 4 * self.dim**2 + 2 * self.dim * self.hidden
        return self.depth * block + self.patch_dim * self.dim + self.classifier_units * (self.dim + self.classes)

    @property
    def tokens(self) -> int:
        """Number of patches of an image."""
        return math.prod(size // patch for size, patch in zip(self.image_size, self.patch_size, strict=True))

    @property
    def patch_dim(self) -> int:
        """Number of features that a token is computed from."""
        return stem_features(self.stem, self.channels, self.patch_size, self.dim)

    @property
    def hidden(self) -> int:
        """Number of hidden units of a block's MLP."""
        return round(self.dim * self.mlp_ratio)

    @property
    def classifier_units(self) -> int:
        """Number of hidden units of the classifier."""
        return self.classifier_hidden or max(1, self.dim // 2)


def default_patch(side: int) -> int:
    """Height or width of a patch where none is given: the largest divisor of a side that leaves `PATCHES` patches."""
    return max(patch for patch in range(1, side + 1) if side % patch == 0 and patch <= max(1, side / PATCHES))


class Encoder(nn.Module):
    """Pre-norm transformer blocks; every parameter holds all blocks, stacked along its first dimension."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        depth, dim, heads, hidden = config.depth, config.dim, config.heads, config.hidden
        inner = (heads, dim // heads)
        self.drop = nn.Dropout(config.dropout)
        self.query = nn.Parameter(torch.empty(depth, *inner, dim))
        self.key = nn.Parameter(torch.empty(depth, *inner, dim))
        self.value = nn.Parameter(torch.empty(depth, *inner, dim))
        self.out = nn.Parameter(torch.empty(depth, dim, *inner))
        self.up = nn.Parameter(torch.empty(depth, hidden, dim))
        self.down = nn.Parameter(torch.empty(depth, dim, hidden))
        self.query_bias = nn.Parameter(torch.zeros(depth, dim))
        self.key_bias = nn.Parameter(torch.zeros(depth, dim))
        self.value_bias = nn.Parameter(torch.zeros(depth, dim))
        self.out_bias = nn.Parameter(torch.zeros(depth, dim))
        self.up_bias = nn.Parameter(torch.zeros(depth, hidden))
        self.down_bias = nn.Parameter(torch.zeros(depth, dim))
        self.attention_norm = nn.Parameter(torch.ones(depth, dim))
        self.attention_norm_bias = nn.Parameter(torch.zeros(depth, dim))
        self.mlp_norm = nn.Parameter(torch.ones(depth, dim))
        self.mlp_norm_bias = nn.Parameter(torch.zeros(depth, dim))

    def forward(self, x: Tensor, attention: list[Tensor] | None = None, linear: Linear = linear) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, dim); see `ViT.forward` for ``attention`` and ``linear``."""
        batch, tokens, dim = x.shape
        heads = self.query.shape[1]
        query, key, value = (w.flatten(1, 2).unbind() for w in (self.query, self.key, self.value))
        out, up, down = self.out.flatten(2).unbind(), self.up.unbind(), self.down.unbind()
        query_bias, key_bias, value_bias = self.query_bias.unbind(), self.key_bias.unbind(), self.value_bias.unbind()
        out_bias, up_bias, down_bias = self.out_bias.unbind(), self.up_bias.unbind(), self.down_bias.unbind()
        norm1, norm1_bias = self.attention_norm.unbind(), self.attention_norm_bias.unbind()
        norm2, norm2_bias = self.mlp_norm.unbind(), self.mlp_norm_bias.unbind()

        def split(z: Tensor) -> Tensor:  # (batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim)
            return z.view(batch, tokens, heads, -1).transpose(1, 2)

        for i in range(len(query)):
            z = F.layer_norm(x, (dim,), norm1[i], norm1_bias[i])
            q = split(linear("encoder.query", i, z, query[i], query_bias[i]))
            k = split(linear("encoder.key", i, z, key[i], key_bias[i]))
            v = split(linear("encoder.value", i, z, value[i], value_bias[i]))
            # Written out, as tokens are few and torch's fused CPU kernel is slow in bfloat16 and differentiable once.
            looks = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).to(v.dtype)
            if attention is not None:
                attention.append(looks)
            z = (looks @ v).transpose(1, 2).flatten(2)
            x = x + self.drop(linear("encoder.out", i, z, out[i], out_bias[i]))
            z = F.layer_norm(x, (dim,), norm2[i], norm2_bias[i])
            z = self.drop(F.gelu(linear("encoder.up", i, z, up[i], up_bias[i])))
            x = x + self.drop(linear("encoder.down", i, z, down[i], down_bias[i]))
        return x


class Classifier(nn.Module):
    """Two-layer classifier on the pooled tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = config.classifier_units
        self.hidden = nn.Parameter(torch.empty(hidden, config.dim))
        self.out = nn.Parameter(torch.empty(config.classes, hidden))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.out_bias = nn.Parameter(torch.zeros(config.classes))

    def forward(self, x: Tensor, linear: Linear = linear) -> Tensor:
        """(batch, dim) -> (batch, classes)."""
        hidden = F.relu(linear("classifier.hidden", None, x, self.hidden, self.hidden_bias))
        return linear("classifier.out", None, hidden, self.out, self.out_bias)


class ViT(nn.Module):
    """A Vision Transformer: images (batch, channels, height, width), floats in [0, 1] or bytes, to (batch, classes).

    The weights of one role of all blocks are one parameter (`weight_sites` names their dimensions), so
    ``torch.func.functional_call(vit, {"encoder.up": draw, ...}, (images,))`` runs it on sampled weights.

    Example:
        >>> ViT(ViTConfig(image_size=8, patch_size=2, mlp_ratio=4))(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config.stem, config.channels, config.patch_size, config.dim)
        self.patch_embed = nn.Parameter(torch.empty(config.dim, config.patch_dim))
        self.patch_embed_bias = nn.Parameter(torch.zeros(config.dim))
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.pooling == "cls" else None
        tokens = config.tokens + (config.pooling == "cls")
        self.position = nn.Parameter(torch.empty(tokens, config.dim)) if config.position_embedding else None
        self.encoder = Encoder(config)
        self.norm = nn.LayerNorm(config.dim)
        self.classifier = Classifier(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight uniformly within +-1 / sqrt(fan_in), as `nn.Linear` and `nn.Conv2d` do."""
        for part in self.stem.modules():
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()
        with torch.no_grad():
            for site in self.weight_sites():
                bound = 1 / math.sqrt(site.fan_in)
                self.get_parameter(site.name).uniform_(-bound, bound)
            for extra in (self.position, self.class_token):
                if extra is not None:
                    extra.normal_(std=0.02)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        return self.config.channels, *self.config.image_size

    def weight_sites(self) -> list[WeightSite]:
        """The weights that a prior may mask, in the order in which the network uses them."""
        return [
            WeightSite(name, tuple(self.get_parameter(name).shape), dims, reads, writes)
            for name, (dims, reads, writes) in SITES.items()
        ]

    def forward_features(
        self, images: Tensor, attention: list[Tensor] | None = None, linear: Linear = linear
    ) -> Tensor:
        """Images (batch, channels, height, width) to normalised tokens (batch, tokens, dim); see `forward`.

        Raises:
            InputError: if the images are not of the configured size.
        """
        config = self.config
        if images.dim() != 4 or images.shape[1:] != (config.channels, *config.image_size):
            raise InputError(
                f"images of shape {tuple(images.shape)}: this network takes "
                f"(batch, {config.channels}, {config.image_size[0]}, {config.image_size[1]}); "
                "resize them or change ViTConfig"
            )
        pixels = as_floats(images).to(self.patch_embed.dtype)
        patches = self.stem((pixels - config.pixel_mean) / config.pixel_std)
        x = linear("patch_embed", None, patches, self.patch_embed, self.patch_embed_bias)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        if self.position is not None:
            x = x + self.position
        return self.norm(self.encoder(self.encoder.drop(x), attention, linear))

    def forward_head(self, features: Tensor, linear: Linear = linear) -> Tensor:
        """Tokens (batch, tokens, dim) to logits (batch, classes)."""
        return self.classifier(features.mean(1) if self.class_token is None else features[:, 0], linear)

    def forward(self, images: Tensor, attention: list[Tensor] | None = None, linear: Linear = linear) -> Tensor:
        """Images (batch, channels, height, width) in [0, 1] to logits (batch, classes).

        Args:
            images: the batch.
            attention: a list to which each block adds its attention maps (batch, heads, tokens, tokens), the
                last axis over what is attended to; None computes none.
            linear: a function that applies the linear layers of all weight sites, such as that of an estimator that
                observes their inputs; see `pyro_isingvit.network.Linear`.

        Raises:
            InputError: if the images are not of the configured size.
        """
        return self.forward_head(self.forward_features(images, attention, linear), linear)
