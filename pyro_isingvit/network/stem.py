"""The stem, which makes the features of each token: the pixels of its patch, or a few small convolutions.

`pyro_isingvit.export` joins this file and `pruning.compact` in one, so that it must import nothing but torch and the
standard library.
"""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


def as_floats(images: Tensor) -> Tensor:
    """Images as floats: bytes are divided by 255, floats are returned unchanged."""
    return images if images.is_floating_point() else images.float() / 255


def to_patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (batch, channels, height, width) to (batch, tokens, channels * patch height * patch width)."""
    batch, channels, height, width = images.shape
    rows, columns = height // size[0], width // size[1]
    grid = images.reshape(batch, channels, rows, size[0], columns, size[1])
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


STEMS = ("patches", "convolutions")
"""Names of the stems, see `Stem`."""


def check_stem(stem: str, image_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """Check that a stem makes one token of each patch.

    Raises:
        ValueError: if convolutions of stride 2 cannot do so for this size of image and patch.
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
    """Channels before and after each convolution, without the last one, which is the patch embedding."""
    return [channels, *(max(1, dim >> left) for left in range(_halvings(patch_size[0]) - 1, 0, -1))]


def stem_features(stem: str, channels: int, patch_size: tuple[int, int], dim: int) -> int:
    """Number of features that the patch embedding reads for each token."""
    if stem == "patches":
        return channels * math.prod(patch_size)
    return 9 * stem_widths(channels, patch_size, dim)[-1]


class Stem(nn.Module):
    """Makes the features of each token, to which the network then applies the linear patch embedding.

    With ``"patches"`` these are the pixels of its patch. With ``"convolutions"`` a patch is reduced to one token by
    several 3 x 3 convolutions of stride 2 with GELU between them, whose channels double up to ``dim``. The last one is
    the patch embedding, and the features are the 3 x 3 windows that it reads.

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
