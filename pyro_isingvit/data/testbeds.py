"""Labelled images of which it is known what the label depends on, to test inclusion probabilities with."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..network import ViT, ViTConfig
from ..network.stem import to_patches
from .images import Images
from .readers import read
from .streams import in_memory

Kind = Literal["digits", "noise", "correlated"]
"""Kinds of decoy channels, see `digits_decoys`."""

OWN = 0.7
"""Share of the image's own digit in a channel of a ``"correlated"`` decoy."""

BLANK = 0.95
"""A pixel with the same value in more than this share of the images of `digits_decoys` counts as irrelevant."""

SIDE, CLASSES, GAIN = 8, 4, 6.0
"""Height and width of the images, number of classes, and standard deviation of the logits, of `planted_network`."""


@dataclass(frozen=True)
class TestBed:
    """Images with their truth.

    Attributes:
        images: the labelled images.
        relevant: whether the label can depend on a pixel, given all others; booleans (channels, height, width).
    """

    __test__ = False  # not a class of tests, whatever pytest makes of its name

    images: Images
    relevant: Tensor

    def features(self, patch_size: int) -> Tensor:
        """Whether each input feature of a patch is relevant: whether it is so in one patch at least.

        Args:
            patch_size: height and width of a patch; has to divide the images.

        Returns:
            Booleans (features,), in the order of the dimension ``patch`` of the site ``patch_embed``: channels, rows,
            columns.

        Raises:
            InputError: if patches of this size do not tile the images.
        """
        height, width = self.relevant.shape[1:]
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise InputError(f"patch_size={patch_size}: has to divide the images of {height} x {width}")
        return to_patches(self.relevant.unsqueeze(0), (patch_size, patch_size)).squeeze(0).any(0)


def digits_decoys(decoys: int = 7, kind: Kind = "digits", seed: int = 0) -> TestBed:
    """The embedded digits in the first channel, and channels beside it that say nothing more about the label.

    Args:
        decoys: number of decoy channels.
        kind: what is in them: ``"digits"``, those of other images; ``"noise"``, uniform noise; ``"correlated"``, a
            mixture of the image's own digit and another's, which is informative on its own, but not given the first
            channel.
        seed: seed of the decoys.

    Returns:
        1,797 images of 8 x 8 pixels in ``1 + decoys`` channels. Relevant are 50 pixels of the first channel; the
        other 14 have one value in more than 95 % of the images.

    Raises:
        InputError: if ``decoys`` is negative, or the kind is unknown.
    """
    given: Any = decoys
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 0:
        raise InputError(f"decoys={decoys!r}: need a number of channels, an integer from 0")
    if kind not in get_args(Kind):
        raise InputError(f"kind={kind!r}: choose one of {list(get_args(Kind))}")
    every, generator = in_memory(read("digits")), torch.Generator().manual_seed(seed)
    own = every.images

    def others() -> Tensor:
        return own[torch.randperm(len(own), generator=generator)]

    channels = [own]
    for _ in range(decoys):
        if kind == "noise":
            channels.append(torch.rand(own.shape, generator=generator))
        else:
            share = OWN if kind == "correlated" else 0.0
            channels.append(share * own + (1 - share) * others())
    relevant = torch.zeros(len(channels), *own.shape[2:], dtype=torch.bool)
    relevant[0] = (own == own.mode(0).values).double().mean((0, 1)) <= BLANK
    return TestBed(Images(torch.cat(channels, 1), every.labels, every.classes), relevant)


def planted_network(images: int = 2600, relevant: int = 6, seed: int = 0) -> TestBed:
    """Random pixels, labelled by a sparse `ViT` that reads few of the features of a patch.

    Args:
        images: number of images, of 8 x 8 pixels in one channel and of 4 classes.
        relevant: number of the 16 features of a patch of 4 x 4 pixels that the network reads.
        seed: seed of pixels, network and labels. Labels are drawn from the network's probabilities; its most probable
            class is right for 80 to 88 % of the images.

    Raises:
        InputError: if there is no image, or ``relevant`` is not within 1 and 16.
    """
    patch, generator = 4, torch.Generator().manual_seed(seed)
    if images < 1:
        raise InputError(f"images={images}: need at least one")
    if not 1 <= relevant <= patch**2:
        raise InputError(f"relevant={relevant}: a patch has {patch**2} features, of which 1 at least is read")
    pixels = torch.rand(images, 1, SIDE, SIDE, generator=generator)
    read_at_all = torch.zeros(patch**2, dtype=torch.bool)
    read_at_all[torch.randperm(patch**2, generator=generator)[:relevant]] = True
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        network = ViT(
            ViTConfig(
                image_size=(SIDE, SIDE),
                patch_size=(patch, patch),
                classes=CLASSES,
                dim=16,
                depth=1,
                heads=2,
                mlp_ratio=2,
            )
        )
        network.patch_embed.mul_(3 * read_at_all)
        logits = network(pixels)
    spread = (logits - logits.mean(0)) / logits.std()
    labels = torch.multinomial((GAIN * spread).softmax(-1), 1, generator=generator).squeeze(1)
    tiles = SIDE // patch
    truth = read_at_all.view(patch, patch).repeat(tiles, tiles).unsqueeze(0)
    return TestBed(Images(pixels, labels, CLASSES), truth)
