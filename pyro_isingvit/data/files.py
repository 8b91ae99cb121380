"""Image files as users name them: files, folders and patterns."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..files import home
from .folders import EXTENSIONS, image_files, read_sized, warn_of_others

PATTERN = "*?["
"""Characters that make a name a pattern, if there is no file of that name."""


def find_files(given: Sequence[str | Path]) -> list[Path]:
    """The files that some names stand for, in order and each once.

    Args:
        given: files, whatever their extension; folders, whose visible image files are found recursively, as in
            `FolderImages`; or patterns such as ``"*.png"`` or ``"**/*.png"``.

    Raises:
        InputError: if a file does not exist, a folder has no image, or nothing matches a pattern.
    """
    if isinstance(given, str | Path):
        given = [given]
    files = [path for each in given for path in _named(each)]
    if not files:
        raise InputError("files: none given; give files, folders or patterns such as '*.png'")
    return list(dict.fromkeys(files))


def read_files(files: Sequence[str | Path], shape: tuple[int, int, int], background: int = 255) -> Tensor:
    """Read image files as those of a `FolderImages` are read, for `Posterior.predict`.

    Args:
        files: files, folders or patterns, see `find_files`.
        shape: (channels, height, width) of the images that the network takes, such as ``data.train.shape``; 1 channel
            or 3.
        background: grey level, 0 to 255, beneath transparent images.

    Returns:
        Bytes (n, channels, height, width), in the order of the files.

    Raises:
        InputError: if a file does not exist or is no image, or there are other than 1 or 3 channels.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"shape={tuple(shape)}: give (channels, height, width), where image files have 1 channel or 3")
    return torch.stack([read_sized(path, shape, background) for path in find_files(files)])


def _named(given: str | Path) -> list[Path]:
    path = home(given)
    if path.is_dir():
        found, lack = _inside(path), f"no image there ({', '.join(EXTENSIONS)}); give a folder of images"
    elif path.is_file():
        return [path]
    elif any(character in str(path) for character in PATTERN):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        found = [file for match in matches for file in (_inside(match) if match.is_dir() else _alone(match))]
        lack = "no image matches this pattern; give another, or a file or folder"
    else:
        found, lack = [], "no such file or folder; give files, folders or patterns such as '*.png'"
    if not found:
        raise InputError(f"files={str(given)!r}: {lack}")
    return found


def _alone(path: Path) -> list[Path]:
    """A file, or a link to one that is missing, which is an error when it is read; nothing else, such as a pipe."""
    return [path] if path.is_file() or not path.exists() else []


def _inside(folder: Path) -> list[Path]:
    others: Counter[str] = Counter()
    files = sorted(image_files(folder, others))
    warn_of_others(folder, others)
    return files
