"""Folders with one subfolder of images for each class, as they are found in life."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, check_count
from ..files import home
from .images import MOST_PIXELS, Images, fingerprint, resize

Part = Literal["train", "validation", "test"]
"""The official parts of a data set."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Extensions of the files that are read; those of torchvision's `ImageFolder`."""

PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of folders of parts, in lower case."""

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of PIL images with 16 bits."""

GREY = ("1", "L", "LA", *DEEP)
"""Modes of PIL images without colours."""


def parts_of(root: Path) -> dict[Part, Path]:
    """The folders of the parts, if all visible subfolders are such and one is for training; else nothing."""
    found: dict[Part, Path] = {}
    folders = _folders(root)
    for folder in folders:
        for part, names in PARTS.items():
            if folder.name.lower() in names:
                found.setdefault(part, folder)
    return found if len(found) == len(folders) > 1 and "train" in found else {}


def read_folder(root: Path, part: Part = "train", image_size: int | None = None, background: int = 255) -> Images:
    """Read the images of a folder, see `FolderImages`."""
    return FolderImages(root, part, image_size, background).load()


class FolderImages(Dataset[tuple[Tensor, int]]):
    """The images of a folder that has one subfolder for each class, or of one that has such folders as parts.

    Items are pairs of bytes (channels, height, width) and the number of the class; files are read when they are asked
    for. Classes are in the order of their names as text. Folders and files whose names begin with a dot, and
    ``__MACOSX``, are not read, nor are linked folders beneath a class. Images are turned as their EXIF data say;
    transparent ones are laid on a background; 16 bits become 8; of animated ones the first frame is read.

    Args:
        root: the folder. If it has ``train`` and ``val`` or ``test``, these are the parts.
        part: the part to read. A folder without parts has only ``"train"``.
        image_size: height and width to resize each image to as it is read; None if all have the same size.
        background: grey level, 0 to 255, beneath transparent images.

    Attributes:
        paths, targets: path and class of each image.
        classes: names of the classes.

    Raises:
        InputError: if the folder does not exist, has no such part or no classes, a class has no image, an image cannot
            be read, or sizes differ and ``image_size`` is None. The message names the file.
    """

    def __init__(
        self, root: str | Path, part: Part = "train", image_size: int | None = None, background: int = 255
    ) -> None:
        if isinstance(background, bool) or not isinstance(background, int) or not 0 <= background <= 255:
            raise InputError(f"background={background!r}: must be an integer from 0 (black) to 255 (white)")
        if image_size is not None:
            check_count("image_size", image_size, MOST_PIXELS)
        root = home(root)
        parts = parts_of(root)
        if part != "train" and part not in parts:
            raise InputError(
                f"part={part!r}: {str(root)!r} has no folder for it (one of {PARTS[part]}); give a number of images"
            )
        self.top, self.image_size, self.background = parts.get(part, root), image_size, background
        self.classes = _classes(parts["train"] if parts else root)
        unknown = sorted({folder.name for folder in _folders(self.top)} - set(self.classes))
        if unknown:
            raise InputError(
                f"{str(self.top)!r} has classes {unknown[:3]}, which the training images do not have: "
                f"{self.classes[:10]}"
            )
        self.paths, self.targets = self._listed(part)

    def _listed(self, part: Part) -> tuple[list[Path], Tensor]:
        paths: list[Path] = []
        labels: list[int] = []
        others: Counter[str] = Counter()
        for label, name in enumerate(self.classes):
            found = sorted(image_files(self.top / name, others))
            if not found and part == "train":
                raise InputError(
                    f"{str(self.top / name)!r}: no image of this class ({', '.join(EXTENSIONS)}); remove the folder"
                )
            paths += found
            labels += [label] * len(found)
        warn_of_others(self.top, others)
        if not paths:
            raise InputError(f"{str(self.top)!r}: no image there; give at least one")
        return paths, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self._sized(i, read_image(self.paths[i], self.background))
        return image.expand(self.channels, -1, -1), int(self.targets[i])

    @cached_property
    def _first(self) -> Tensor:
        return read_image(self.paths[0], self.background)

    @cached_property
    def channels(self) -> int:
        """3 if any image has colours, else 1; by the headers of the files."""
        return 3 if any(_has_colours(path) for path in self.paths) else 1

    @property
    def nbytes(self) -> int:
        """Bytes that all images take in memory."""
        channels, height, width = self._first.shape
        return len(self) * channels * (height * width if self.image_size is None else self.image_size**2)

    @cached_property
    def fingerprint(self) -> str:
        """Number of images, and a hash of names, classes and sizes of their files."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.targets.tolist(), strict=True):
            digest.update(f"{path.relative_to(self.top).as_posix()}\0{label}\0{path.stat().st_size}\0".encode())
        return f"{len(self)} files, {digest.hexdigest()[:12]}"

    def load(self) -> Images:
        """All images, in memory."""
        kept: list[Tensor] = []

        def originals() -> Iterator[Tensor]:
            for i, path in enumerate(self.paths):
                image = read_image(path, self.background)
                kept.append(self._sized(i, image))
                yield image

        source = fingerprint(tuple(self._first.shape), self.targets, originals())
        channels = max(image.shape[0] for image in kept)
        images = torch.stack([image.expand(channels, -1, -1) for image in kept])
        names = tuple(self.classes)
        return Images(images, self.targets, len(names), "" if self.image_size is None else source, names)

    def _sized(self, i: int, image: Tensor) -> Tensor:
        if self.image_size is not None:
            return resize(image.unsqueeze(0), self.image_size).squeeze(0)
        if image.shape[1:] != self._first.shape[1:]:
            raise InputError(
                f"{str(self.paths[i])!r} is {_size(image)} pixels, and {str(self.paths[0])!r} {_size(self._first)}: "
                "give image_size (--image-size) to have all resized"
            )
        return image


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


def _classes(top: Path) -> list[str]:
    if not top.is_dir():
        what = "is no folder" if top.exists() else "does not exist"
        raise InputError(f"data_root={str(top)!r}: {what}; give a folder that holds one of images for each class")
    names = [folder.name for folder in _folders(top)]
    if not names:
        loose = any(path.suffix.lower() in EXTENSIONS for path in top.iterdir())
        found = "images there, but no folder of those of a class" if loose else "no folder of images of a class there"
        raise InputError(f"data_root={str(top)!r}: {found}; give one for each class")
    return names


def _folders(top: Path) -> list[Path]:
    """Visible subfolders in the order of their names, without links to what they are in."""
    if not top.is_dir():
        return []
    above = {top.resolve(), *top.resolve().parents}
    return sorted(each for each in top.iterdir() if each.is_dir() and _visible(each) and each.resolve() not in above)


def image_files(folder: Path, others: Counter[str]) -> Iterator[Path]:
    """Visible files of images in a folder and the folders in it; counts the extensions of other images."""
    if not folder.is_dir():
        return
    from PIL import Image

    known = Image.registered_extensions()
    for inside, folders, files in os.walk(folder, onerror=_refuse, followlinks=False):
        folders[:] = [name for name in folders if _visible(Path(name))]
        for name in files:
            path, suffix = Path(inside, name), Path(name).suffix.lower()
            if not _visible(path) or not path.is_file():
                continue
            if suffix in EXTENSIONS:
                yield path
            elif suffix in known:
                others[suffix] += 1


def _refuse(error: OSError) -> None:
    raise InputError(f"{str(error.filename)!r}: cannot be read ({error.strerror}); make it readable, or move it away")


def warn_of_others(folder: Path, others: Counter[str]) -> None:
    """Warn of images in a folder that `image_files` has left out."""
    if not others:
        return
    said = ", ".join(f"{count} of {suffix}" for suffix, count in others.items())
    warnings.warn(
        f"{str(folder)!r}: files with images were not read, {said}; those of {', '.join(EXTENSIONS)} are",
        UserWarning,
        stacklevel=4,
    )


def _has_colours(path: Path) -> bool:
    """Whether an image file has colours, by its header; a file that is damaged says so when it is read."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.mode not in GREY
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def read_image(path: Path, background: int = 255, channels: int | None = None) -> Tensor:
    """Read an image file as bytes, see `as_bytes`.

    Raises:
        InputError: if it is not an image, or damaged.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return as_bytes(ImageOps.exif_transpose(image), background, channels)
    except Image.DecompressionBombError as error:
        raise InputError(f"{str(path)!r}: {error}; make the image smaller, or remove it") from None
    except UnidentifiedImageError:
        raise InputError(f"{str(path)!r}: not an image, or damaged; remove or repair it") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # some for damaged PNGs
        raise InputError(f"{str(path)!r}: not an image, or damaged ({error}); remove or repair it") from None


def read_sized(path: Path, shape: tuple[int, int, int], background: int = 255) -> Tensor:
    """Read an image file as bytes of a shape (channels, height, width), with 1 or 3 channels; see `FolderImages`."""
    channels, *size = shape
    image = read_image(path, background, channels)
    image = image if list(image.shape[1:]) == size else resize(image.unsqueeze(0), (size[0], size[1])).squeeze(0)
    return image.expand(channels, -1, -1)


def as_bytes(image: Any, background: int = 255, channels: int | None = None) -> Tensor:
    """A PIL image as bytes, (channels, height, width); of None, 1 channel if it is grey, else 3."""
    from PIL import Image

    if image.mode in DEEP:
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"image of mode {image.mode!r} within [{values.min():g}, {values.max():g}]: has no 16 bits"
            )
        return torch.from_numpy(np.round(values / 257).astype(np.uint8)).expand(channels or 1, -1, -1)
    if image.mode == "F":
        raise InputError("image of mode 'F': holds floating-point numbers; convert it to L or RGB")
    grey = image.mode in GREY if channels is None else channels == 1
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        ground = Image.new("RGBA", over.size, (background, background, background, 255))
        image = Image.alpha_composite(ground, over)
    pixels = torch.from_numpy(np.array(image.convert("L" if grey else "RGB")))
    return pixels.unsqueeze(0) if grey else pixels.permute(2, 0, 1)
