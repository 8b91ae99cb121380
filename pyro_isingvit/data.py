"""Labelled images in memory: data sets by name, splits without a leak, batched augmentation."""

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Config
from .errors import InputError


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        images: float, shape (n, channels, height, width), within [0, 1].
        labels: int64, shape (n,), within [0, classes).
        classes: number of classes.

    Raises:
        InputError: if shapes, pixel values or labels do not fit.
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dim() != 4 or not images.is_floating_point():
            raise InputError(
                f"images of shape {tuple(images.shape)} and type {images.dtype}: need (n, channels, height, width) "
                "floats; unsqueeze(1) grey images and divide bytes by 255"
            )
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise InputError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype}: need ({len(images)},) integers, "
                "one for each image"
            )
        if not len(images):
            raise InputError("images: there is none; give at least one")
        broken = ~images.isfinite().flatten(1).all(1)
        if broken.any():
            where = int(broken.nonzero()[0])
            raise InputError(f"images[{where}] holds NaN or infinity: remove or repair {int(broken.sum())} image(s)")
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise InputError(f"images within [{low:g}, {high:g}]: rescale them to [0, 1]")
        strange = (labels < 0) | (labels >= self.classes)
        if strange.any():
            where = int(strange.nonzero()[0])
            raise InputError(
                f"labels[{where}]={int(labels[where])}: must lie within [0, {self.classes}); "
                "correct it or raise classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> "Images":
        return Images(self.images[index], self.labels[index], self.classes)

    def to(self, device: torch.device | str) -> "Images":
        """The same on a device."""
        return Images(self.images.to(device), self.labels.to(device), self.classes)


@dataclass(frozen=True)
class Data:
    """Three parts that share no image: fit on ``train``, decide on ``validation``, report on ``test``."""

    train: Images
    validation: Images
    test: Images

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def split(everything: Images, train: int, test: int, validation: int | None = None, seed: int = 0) -> Data:
    """Part images at random, by seed: the first go to test, the next to validation, the last to training.

    Args:
        everything: all images.
        train, test: how many.
        validation: how many; if None as many as ``train``, as far as there are any left, and at most 2,000.
        seed: of the permutation.

    Raises:
        InputError: if there are not as many.
    """
    total = len(everything)
    spared = max(1, total // 10) if validation is None else validation
    if validation is None:
        validation = max(1, min(train, 2000, total - train - test))
    for name, value in (("train", train), ("test", test), ("validation", validation)):
        if value < 1:
            raise InputError(f"{name}={value}: need at least one image")
    if train + validation + test > total:
        raise InputError(
            f"train={train} with validation={validation} and test={test}: there are only {total} images; "
            f"train={max(1, total - test - spared)} or fewer would do"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    ends = test, test + validation, test + validation + train
    return Data(
        train=everything[order[ends[1] : ends[2]]],
        validation=everything[order[ends[0] : ends[1]]],
        test=everything[order[: ends[0]]],
    )


def digits(root: Path | None = None) -> Images:
    """Scikit-learn's 1,797 handwritten digits, 8x8; part of that package, nothing is downloaded."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return Images(images, torch.from_numpy(bunch.target).long(), 10)


def _torchvision(name: str) -> Callable[[Path | None], Images]:
    def read(root: Path | None) -> Images:
        from torchvision import datasets

        if root is None:
            raise InputError(f"data_root=None: {name} is read from files; give the folder that holds {name}/raw")
        try:
            data = getattr(datasets, name)(root, train=True, download=False)
        except RuntimeError:
            raise InputError(
                f"data_root={str(root)!r}: no {name} there (looked for {root / name / 'raw'}); give the folder that "
                f"torchvision.datasets.{name}(root, download=True) filled"
            ) from None
        return Images(data.data.float().div(255).unsqueeze(1), data.targets.long(), len(data.classes))

    return read


def _npz(path: Path) -> Images:
    if not path.is_file():
        raise InputError(f"dataset={str(path)!r}: no such file; make one by numpy.savez(path, images=..., labels=...)")
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"dataset={str(path)!r}: not an .npz file ({error}); make one by numpy.savez") from None
    with arrays:
        missing = {"images", "labels"} - set(arrays.files)
        if missing:
            raise InputError(f"dataset={str(path)!r}: lacks {sorted(missing)}; it has {arrays.files}")
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
        classes = int(arrays["classes"]) if "classes" in arrays.files else None
    if images.dtype == torch.uint8:
        images = images.float().div(255)
    images = images.float().unsqueeze(1) if images.dim() == 3 else images.float()
    return Images(images, labels.long(), int(labels.max()) + 1 if classes is None else classes)


DATASETS: dict[str, Callable[[Path | None], Images]] = {
    "digits": digits,
    "mnist": _torchvision("MNIST"),
    "fashion-mnist": _torchvision("FashionMNIST"),
}
"""Readers of all training images by name; they take the folder of the files."""


def read(name: str, root: str | Path | None = None) -> Images:
    """All training images of a data set.

    Args:
        name: a key of `DATASETS`, or the path of a NumPy ``.npz`` file with arrays ``images``
            (n, height, width) or (n, channels, height, width), bytes or floats within [0, 1], ``labels``
            (n,) and optionally ``classes``.
        root: folder of the files, for data sets that do not ship with a package.

    Raises:
        InputError: if there is no such data set, file or folder, or what is in it does not fit.
    """
    if name.endswith(".npz"):
        return _npz(Path(name))
    if name not in DATASETS:
        raise InputError(f"dataset={name!r}: unknown; choose one of {list(DATASETS)} or the path of an .npz file")
    return DATASETS[name](None if root is None else Path(root))


class RandomAffine(Config):
    """A random rotation, scaling, shear and shift, another one for every image of a batch. Black comes in.

    Called with images (n, channels, height, width) within [0, 1] it returns the same shape. Draws come
    from torch's generator; `fit` seeds it.

    Attributes:
        degrees: largest rotation.
        scale: largest relative change of size.
        shear: largest shear, in degrees.
        translate: largest shift, as a share of the image's side.
    """

    degrees: float = pydantic.Field(default=15, ge=0, le=180)
    scale: float = pydantic.Field(default=0.15, ge=0, lt=1)
    shear: float = pydantic.Field(default=10, ge=0, lt=90)
    translate: float = pydantic.Field(default=0.12, ge=0, le=1)

    def __call__(self, images: Tensor) -> Tensor:
        noise = torch.rand(5, len(images), device=images.device) * 2 - 1
        angle, shear = noise[0] * math.radians(self.degrees), torch.tan(noise[1] * math.radians(self.shear))
        scale, shift = 1 + noise[2] * self.scale, noise[3:] * 2 * self.translate
        cos, sin = angle.cos() * scale, angle.sin() * scale
        first = torch.stack([cos, cos * shear - sin, shift[0]], -1)
        second = torch.stack([sin, sin * shear + cos, shift[1]], -1)
        grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)
