"""Labelled images in memory."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, check_count, kind_of
from ..network.stem import as_floats

MOST_CLASSES = 1_000_000
"""Largest number of classes; more is most often a mistake in the labels, and would fill the memory."""

MOST_PIXELS, MOST_BYTES = 2**14, 2**36
"""Largest height or width of images, and size of all together, that are taken for meant."""

PIXELS_AT_ONCE = 20_000_000
"""Numbers in the images that are resized at once."""


@dataclass(frozen=True, repr=False)
class Images:
    """Labelled images.

    Attributes:
        images: shape (n, channels, height, width): bytes, or floats within [0, 1], which are stored as float32. Bytes
            take a quarter of the memory; the network and everything else that reads images divides them by 255.
        labels: integers within [0, classes), shape (n,), stored as int64: one class an image. Or floats, (n,) or
            (n, k), stored as (n, k) float32: numbers to predict. Or booleans (n, k): whether an image has each of k
            labels.
        classes: number of classes; of numbers, or of labels of an image, k.
        source: `fingerprint` of the images from which these were resized; empty if they were not resized.
        names: names of the classes, in order; empty if they have none.

    Raises:
        InputError: if shapes, pixel values or labels do not fit.
    """

    images: Tensor
    labels: Tensor
    classes: int
    source: str = ""
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Images({len(self)} of shape {self.shape}, {self.classes} {self.kind})"

    def __post_init__(self) -> None:
        images, labels = checked_pixels(self.images), self.labels
        if not isinstance(labels, Tensor):
            raise InputError(f"labels={kind_of(labels)}: give a tensor of integers, e.g. torch.as_tensor(labels)")
        if labels.is_floating_point() or (labels.dtype == torch.bool and labels.dim() == 2):
            object.__setattr__(self, "labels", _checked_numbers(labels, images, self.classes))
            object.__setattr__(self, "images", images)
            return
        if labels.shape != images.shape[:1] or labels.is_complex():
            raise InputError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype}: need ({len(images)},) integers, "
                "one for each image"
            )
        if type(self.classes) is not int or not 1 <= self.classes <= MOST_CLASSES:
            raise InputError(f"classes={self.classes!r}: give a positive integer, at most {MOST_CLASSES:,}")
        if self.names and len(self.names) != self.classes:
            raise InputError(f"names={self.names[:5]}...: {len(self.names)} names for classes={self.classes}")
        labels = labels.long()
        strange = (labels < 0) | (labels >= self.classes)
        if strange.any():
            where = int(strange.nonzero()[0])
            raise InputError(
                f"labels[{where}]={int(labels[where])}: must lie within [0, {self.classes}); "
                "correct it or raise classes"
            )
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "images", images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> "Images":
        return Images(self.images[index], self.labels[index], self.classes, names=self.names)

    @property
    def kind(self) -> str:
        """Kind of the labels: ``"classes"``, ``"numbers"`` or ``"several labels"``; see `Likelihood`."""
        return kind_of_labels(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """Number, shape and a hash of the pixels and labels, from before the images were resized."""
        return self.source or fingerprint(self.shape, self.labels, self.images)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def resized(self, size: int) -> "Images":
        """The same images resized to height and width ``size`` by antialiased bilinear interpolation; bytes stay bytes.

        Raises:
            InputError: if ``size`` is not an integer from 1 to `MOST_PIXELS`, or all images together would be huge.
        """
        check_count("image_size", size, MOST_PIXELS)
        if self.shape[1:] == (size, size):
            return self
        total = len(self) * self.shape[0] * size**2 * self.images.element_size()
        if total > MOST_BYTES:
            raise InputError(f"image_size={size}: {len(self):,} images take {total / 2**30:.0f} GiB; choose fewer")
        at_once = max(1, PIXELS_AT_ONCE // (self.shape[0] * max(size**2, self.shape[1] * self.shape[2])))
        parts = [resize(batch, size) for batch in self.images.split(at_once)]
        return replace(self, images=torch.cat(parts), source=self.fingerprint)


def kind_of_labels(labels: Tensor) -> str:
    """Kind of labels as they are stored, see `Images.kind`."""
    if labels.is_floating_point():
        return "numbers"
    return "several labels" if labels.dtype == torch.bool else "classes"


def _checked_numbers(labels: Tensor, images: Tensor, classes: int) -> Tensor:
    """Numbers, or several labels, of each image as (n, k)."""
    what, name = ("numbers", "floats") if labels.is_floating_point() else ("labels", "booleans")
    labels = labels.unsqueeze(-1) if labels.dim() == 1 else labels
    if labels.dim() != 2 or len(labels) != len(images) or labels.shape[1] != classes:
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} with classes={classes!r}: {name} are "
            f"{what} to predict, ({len(images)}, classes); give integers for one class an image"
        )
    if not labels.is_floating_point():
        return labels
    if not bool(labels.isfinite().all()):
        where = int((~labels.isfinite().all(1)).nonzero()[0])
        raise InputError(f"labels[{where}]={labels[where].tolist()}: must be finite; leave the image out")
    return labels.float()


def check_images(name: str, given: object) -> None:
    """Check that labelled images were given.

    Raises:
        InputError: if it is anything else.
    """
    if not isinstance(given, Images):
        raise InputError(f"{name}={kind_of(given)}: give Images, such as data.validation, or Images(images, labels, k)")


def checked_pixels(images: Any, name: str = "images") -> Tensor:
    """Images as everything here takes them: bytes, or float32 within [0, 1].

    Args:
        images: (n, channels, height, width), with at least one image.
        name: name of the argument, for messages.

    Raises:
        InputError: if type, shape or values do not fit.
    """
    if not isinstance(images, Tensor):
        raise InputError(
            f"{name}={kind_of(images)}: give a tensor (n, channels, height, width), e.g. torch.from_numpy(array)"
        )
    if images.dim() != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise InputError(
            f"{name} of shape {tuple(images.shape)} and type {images.dtype}: need (n, channels, height, width) "
            "bytes, or floats within [0, 1]; unsqueeze(1) grey images, .float() booleans, and turn other integers into "
            "torch.uint8"
        )
    if not images.numel():
        raise InputError(f"{name} of shape {tuple(images.shape)}: there is no pixel; give at least one image")
    if not images.is_floating_point():
        return images
    images = images.float()
    broken = ~images.isfinite().flatten(1).all(1)
    if broken.any():
        where = int(broken.nonzero()[0])
        raise InputError(f"{name}[{where}] holds NaN or infinity: remove or repair {int(broken.sum())} image(s)")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise InputError(f"{name} within [{low:g}, {high:g}]: rescale them to [0, 1]")
    return images


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize images (n, channels, height, width) to a height and width, equal if one is given; bytes stay bytes."""
    height, width = (size, size) if isinstance(size, int) else size
    small = F.interpolate(as_floats(images), (height, width), mode="bilinear", antialias=True).clamp(0, 1)
    return (small * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else small


def fingerprint(shape: tuple[int, ...], labels: Tensor, images: Iterable[Tensor]) -> str:
    """Number, shape and a hash of labelled images; it differs for other images, labels, or another order."""
    digest = hashlib.sha256(labels.cpu().numpy().tobytes())
    for image in images:
        digest.update(image.cpu().contiguous().numpy().tobytes())
    return f"{len(labels)} of {'x'.join(map(str, shape))}, {digest.hexdigest()[:12]}"
