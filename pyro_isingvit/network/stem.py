"""What a token is computed from: the pixels of its patch, or a few small convolutions. Needs only torch.

`pyro_isingvit.export` writes this file and `pruning.compact` as one, so it imports nothing of the package.
"""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


def as_floats(images: Tensor) -> Tensor:
    """Images within [0, 1]: bytes are divided by 255."""
    return images if images.is_floating_point() else images.float() / 255


def to_patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (batch, channels, height, width) to (batch, tokens, channels * patch height * patch width)."""
    batch, channels, height, width = images.shape
    rows, columns = height // size[0], width // size[1]
    grid = images.reshape(batch, channels, rows, size[0], columns, size[1])
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


STEMS = ("patches", "convolutions")
"""What a token may be computed from, see `Stem`."""


def check_stem(stem: str, image_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """Whether a stem makes a token of each patch.

    Raises:
        ValueError: if convolutions of stride 2 cannot.
    """
    if stem == "patches":
        return
    sides = list(zip(image_size, patch_size, strict=True))
    for size, patch in sides:
        if not _halves(size, patch):
            possible = [p for p in range(2, size + 1) if _halves(size, p)]
            raise ValueError(
                f"stem={stem!r} halves {size} pixels until there is one for each of {size // patch} patches, which "
                f"patch_size={patch} does not allow; choose one of {possible}"
            )
    if len({_halvings(patch) for _, patch in sides}) > 1:
        raise ValueError(f"stem={stem!r} halves both sides alike, so patch_size={patch_size} has to be (nearly) square")


def _halvings(patch: int) -> int:
    return math.ceil(math.log2(patch))


def _halves(size: int, patch: int) -> bool:
    return patch > 1 and size % patch == 0 and math.ceil(size / 2 ** _halvings(patch)) == size // patch


def stem_widths(channels: int, patch_size: tuple[int, int], dim: int) -> list[int]:
    """Channels before and after each convolution but the last, which is the patch embedding."""
    return [channels, *(max(1, dim >> left) for left in range(_halvings(patch_size[0]) - 1, 0, -1))]


def stem_features(stem: str, channels: int, patch_size: tuple[int, int], dim: int) -> int:
    """Values that the embedding of a token reads."""
    if stem == "patches":
        return channels * math.prod(patch_size)
    return 9 * stem_widths(channels, patch_size, dim)[-1]


class Stem(nn.Module):
    """The values that each token is computed from, linearly.

    ``"patches"``: the pixels of its patch. ``"convolutions"``: the 3 x 3 window of the last of several convolutions of
    stride 2, GELU between them, as many as make a token of a patch; their channels double up to ``dim``.

    References:
        Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021.
    """

    def __init__(self, stem: str, channels: int, patch_size: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.stem, self.patch_size = stem, patch_size
        widths = stem_widths(channels, patch_size, dim) if stem == "convolutions" else []
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, tokens, features)."""
        if self.stem == "patches":
            return to_patches(images, self.patch_size)
        for convolution in self.convolutions:
            images = F.gelu(convolution(images))
        return F.unfold(images, 3, padding=1, stride=2).mT
