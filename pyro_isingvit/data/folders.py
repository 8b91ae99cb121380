"""Folders with one subfolder of images for each class, as they are found in life."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .images import Images, fingerprint, resize

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
    """Read the images of a folder that has one subfolder for each class, or of one that has such folders as parts.

    Classes are in the order of their names as text. Folders and files whose names begin with a dot, and ``__MACOSX``,
    are not read, nor are linked folders beneath a class. Images are turned as their EXIF data say; transparent ones
    are laid on a background; 16 bits become 8; of animated ones the first frame is read.

    Args:
        root: the folder. If it has ``train`` and ``val`` or ``test``, these are the parts.
        part: the part to read. A folder without parts has only ``"train"``.
        image_size: height and width to resize each image to as it is read; None if all have the same size.
        background: grey level, 0 to 255, beneath transparent images.

    Raises:
        InputError: if the folder does not exist, has no such part or no classes, a class has no image, an image cannot
            be read, or sizes differ and ``image_size`` is None. The message names the file.
    """
    if isinstance(background, bool) or not isinstance(background, int) or not 0 <= background <= 255:
        raise InputError(f"background={background!r}: must be an integer from 0 (black) to 255 (white)")
    parts = parts_of(root)
    if part != "train" and part not in parts:
        raise InputError(
            f"part={part!r}: {str(root)!r} has no folder for it (one of {PARTS[part]}); give a number of images"
        )
    top = parts.get(part, root)
    classes = _classes(parts["train"] if parts else root)
    unknown = sorted({folder.name for folder in _folders(top)} - set(classes))
    if unknown:
        raise InputError(
            f"{str(top)!r} has classes {unknown[:3]}, which the training images do not have: {classes[:10]}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        found = sorted(_files(top / name, others))
        if not found and part == "train":
            raise InputError(
                f"{str(top / name)!r}: no image of this class ({', '.join(EXTENSIONS)}); remove the folder"
            )
        paths += found
        labels += [label] * len(found)
    if others:
        said = ", ".join(f"{count} of {suffix}" for suffix, count in others.items())
        warnings.warn(
            f"{str(top)!r}: files with images were not read, {said}; those of {', '.join(EXTENSIONS)} are",
            UserWarning,
            stacklevel=3,
        )
    if not paths:
        raise InputError(f"{str(top)!r}: no image there; give at least one")
    return _load(paths, torch.tensor(labels), tuple(classes), image_size, background)


def _load(paths: list[Path], labels: Tensor, names: tuple[str, ...], image_size: int | None, background: int) -> Images:
    kept: list[Tensor] = []
    first = _tensor(paths[0], background)

    def originals() -> Iterator[Tensor]:
        for path in paths:
            image = _tensor(path, background)
            if image_size is None and image.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"{str(path)!r} is {_size(image)} pixels, and {str(paths[0])!r} {_size(first)}: give image_size to "
                    "have all resized"
                )
            kept.append(image if image_size is None else resize(image.unsqueeze(0), image_size).squeeze(0))
            yield image

    source = fingerprint(tuple(first.shape), labels, originals())
    channels = max(image.shape[0] for image in kept)
    images = torch.stack([image.expand(channels, -1, -1) for image in kept])
    return Images(images, labels, len(names), "" if image_size is None else source, names)


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


def _classes(top: Path) -> list[str]:
    if not top.is_dir():
        raise InputError(f"data_root={str(top)!r}: give a folder that holds one of images for each class")
    names = [folder.name for folder in _folders(top)]
    if not names:
        raise InputError(f"data_root={str(top)!r}: no folder of images of a class there; give one for each class")
    return names


def _folders(top: Path) -> list[Path]:
    """Visible subfolders in the order of their names, without links to what they are in."""
    if not top.is_dir():
        return []
    above = {top.resolve(), *top.resolve().parents}
    return sorted(each for each in top.iterdir() if each.is_dir() and _visible(each) and each.resolve() not in above)


def _files(folder: Path, others: Counter[str]) -> Iterator[Path]:
    """Files of images in a folder and the folders in it; counts the extensions of other images."""
    if not folder.is_dir():
        return
    from PIL import Image

    known = Image.registered_extensions()
    for inside, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if _visible(Path(name))]
        for name in files:
            path, suffix = Path(inside, name), Path(name).suffix.lower()
            if not _visible(path) or not path.is_file():
                continue
            if suffix in EXTENSIONS:
                yield path
            elif suffix in known:
                others[suffix] += 1


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _tensor(path: Path, background: int) -> Tensor:
    """The bytes of an image, (1 or 3, height, width)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return as_bytes(ImageOps.exif_transpose(image), background)
    except Image.DecompressionBombError as error:
        raise InputError(f"{str(path)!r}: {error}; make the image smaller, or remove it") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:  # some for damaged PNGs
        raise InputError(f"{str(path)!r}: not an image, or damaged ({error}); remove or repair it") from None


def as_bytes(image: Any, background: int = 255) -> Tensor:
    """A PIL image as bytes, (1, height, width) if it is grey, else (3, height, width)."""
    from PIL import Image

    if image.mode in DEEP:
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                f"image of mode {image.mode!r} within [{values.min():g}, {values.max():g}]: has no 16 bits"
            )
        return torch.from_numpy(np.round(values / 257).astype(np.uint8)).unsqueeze(0)
    if image.mode == "F":
        raise InputError("image of mode 'F': holds floating-point numbers; convert it to L or RGB")
    grey = image.mode in ("1", "L", "LA")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        ground = Image.new("RGBA", over.size, (background, background, background, 255))
        image = Image.alpha_composite(ground, over)
    pixels = torch.from_numpy(np.array(image.convert("L" if grey else "RGB")))
    return pixels.unsqueeze(0) if grey else pixels.permute(2, 0, 1)
