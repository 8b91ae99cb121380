"""Readers of data sets by name or path. They read local files and download nothing unless asked to."""

import operator
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, check_count, kind_of
from ..files import home
from .folders import FolderImages, Part, as_bytes, read_folder
from .images import MOST_PIXELS, Images, fingerprint, resize
from .streams import Labelled, Stream

MOST_KEPT = 2**30
"""Bytes of the images of a folder above which they are not kept in memory."""


class Reader(Protocol):
    """A function that reads one part of a data set; its arguments are those of `read`."""

    def __call__(self, root: Path | None, part: Part, download: bool, image_size: int | None) -> Labelled: ...


def read(
    name: str,
    root: str | Path | None = None,
    part: Part = "train",
    download: bool = False,
    image_size: int | None = None,
    background: int = 255,
) -> Labelled:
    """Read all images of a part of a data set, as bytes where its files hold bytes.

    Those of a folder of more than `MOST_KEPT` bytes of images are a `Stream`, which reads them when they are needed.

    Args:
        name: a key of `DATASETS`; or the path of a NumPy ``.npz`` file with the arrays ``images``
            (n, height, width) or (n, channels, height, width), of bytes or floats within [0, 1], ``labels``
            (n,), and optionally ``classes``, the number of classes.
        root: folder of the files, for data sets that do not ship with a package. For ``"folder"`` it has one subfolder
            of images for each class. For the others it may have these instead of the official files. An ``.npz`` file
            is looked for in it first.
        part: whether to read the official training, validation or test images, for data sets that distinguish them.
        download: whether missing files are downloaded from the official source of the data set.
        image_size: height and width to resize to; if None, images keep their size.
        background: grey level, 0 to 255, beneath transparent images of a ``"folder"``.

    Raises:
        InputError: if the data set, file or folder does not exist or is damaged, or its contents do not fit.
    """
    if image_size is not None:
        check_count("image_size", image_size, MOST_PIXELS)
    if name.endswith(".npz"):
        _only_training(name, part)
        path = home(name)
        places = [] if root is None else [home(root) / path, home(root) / path.name]
        return _sized(_npz(next((place for place in places if place.is_file()), path)), image_size)
    if name not in DATASETS:
        raise InputError(f"dataset={name!r}: unknown; choose one of {list(DATASETS)} or the path of an .npz file")
    place = None if root is None else home(root)
    if name == "folder":
        return _folder(place, part, download, image_size, background)
    return DATASETS[name](place, part, download, image_size)


def from_dataset(dataset: Any, classes: int | None = None, image_size: int | None = None) -> Images:
    """Read all images of a torch ``Dataset`` of pairs (image, label).

    Args:
        dataset: an indexable data set. Images are PIL images, or tensors (channels, height, width) or (height, width)
            of bytes or of floats within [0, 1]; labels are integers. If some images have colours, grey images are
            repeated over the channels.
        classes: number of classes; one more than the highest label if None.
        image_size: height and width to resize to; if None, all images must have the same size.

    Raises:
        InputError: if there are no images, an image or a label has another type, or images cannot be stacked because
            their sizes (without ``image_size``) or channels differ.
    """
    images, labels = [], []
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"dataset[{i}]={kind_of(item)}: give pairs (image, label)")
        image, label = item
        if not isinstance(image, Tensor) and not hasattr(image, "mode"):
            raise InputError(f"dataset[{i}]: image of type {type(image).__name__}; give PIL images or tensors")
        try:
            labels.append(operator.index(label))
        except TypeError:
            raise InputError(f"dataset[{i}]: label={label!r}; give an integer, the number of the class") from None
        images.append(_as_tensor(image))
    if not images:
        raise InputError("dataset: holds no image; give at least one")
    every, classes = torch.tensor(labels), classes or max(labels) + 1
    if image_size is None:
        return Images(_stack(images), every, classes)
    source = fingerprint(images[0].shape, every, images)
    small = [resize(image.unsqueeze(0), image_size).squeeze(0) for image in images]
    return Images(_stack(small), every, classes, source)


def _as_tensor(image: Any) -> Tensor:
    if not isinstance(image, Tensor):
        return as_bytes(image)
    return image.unsqueeze(0) if image.dim() == 2 else image


def _stack(images: Sequence[Tensor]) -> Tensor:
    channels = max(image.shape[0] for image in images)
    for i, image in enumerate(images):
        if image.shape[1:] != images[0].shape[1:] or image.shape[0] not in (1, channels):
            raise InputError(
                f"dataset[{i}] of shape {tuple(image.shape)}: the first image is {tuple(images[0].shape)}; "
                "give images of one size, or image_size to have them resized"
            )
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def _digits(root: Path | None, part: Part, download: bool, image_size: int | None) -> Images:
    """The 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn."""
    from sklearn.datasets import load_digits

    if root is not None:
        raise InputError(f"data_root={str(root)!r}: digits ships with scikit-learn and is not read from a folder")
    _only_training("digits", part)
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return _sized(Images(images, torch.from_numpy(bunch.target).long(), 10), image_size)


def _digits_decoys(root: Path | None, part: Part, download: bool, image_size: int | None) -> Images:
    """The digits among seven decoy channels, see `pyro_isingvit.data.digits_decoys`."""
    from .testbeds import digits_decoys

    if root is not None:
        raise InputError(f"data_root={str(root)!r}: digits-decoys is made from the digits that ship with scikit-learn")
    _only_training("digits-decoys", part)
    return _sized(digits_decoys().images, image_size)


def _torchvision(name: str, inside: str, shape: tuple[int, int, int], classes: int = 10) -> Reader:
    """Reader of the torchvision data set called ``name``, whose files are in the folder ``inside`` the root.

    If that folder does not exist and nothing is to be downloaded, but the root has one subfolder for each class, the
    images in these are read. They must have the shape ``shape``.
    """

    def read(root: Path | None, part: Part, download: bool, image_size: int | None) -> Images:
        from torchvision import datasets

        if root is None:
            raise InputError(f"data_root=None: {name} is read from files; give the folder that holds {inside}")
        if part == "validation":
            raise InputError(f"part='validation': {name} has no validation images of its own; give a number")
        sorted_out = root.is_dir() and not download and sum(path.is_dir() for path in root.iterdir()) == classes
        if sorted_out and not (root / inside).exists():
            folder = read_folder(root, part)
            if folder.shape != shape:
                raise InputError(
                    f"data_root={str(root)!r}: no {name} there, but images of shape {folder.shape}, not {shape}; for a "
                    "folder of images for each class that is no known data set give dataset='folder'"
                )
            return _sized(folder, image_size)
        try:
            with _alone(root, download):
                data = getattr(datasets, name)(root, train=part == "train", download=download)
        except (RuntimeError, ValueError, OSError, EOFError, AssertionError, KeyError, pickle.UnpicklingError) as error:
            if download and not (root / inside).is_dir():
                raise InputError(f"data_root={str(root)!r}: {name} could not be fetched ({error})") from None
            if not (root / inside).is_dir():
                raise InputError(
                    f"data_root={str(root)!r}: no {name} there (looked for {root / inside}); give the folder that "
                    f"torchvision.datasets.{name}(root, download=True) filled, or --download"
                ) from None
            raise InputError(
                f"data_root={str(root)!r}: the files of {name} in {root / inside} are incomplete or damaged "
                f"({' '.join(str(error).split())[:120] or type(error).__name__}); remove and fetch them again"
            ) from None
        pixels = torch.as_tensor(data.data)
        pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        return _sized(Images(pixels, torch.as_tensor(data.targets).long(), len(data.classes)), image_size)

    return read


@contextmanager
def _alone(root: Path, download: bool) -> Iterator[None]:
    """Let one process at a time download to a folder; others wait and then find the files."""
    if download:
        root.mkdir(parents=True, exist_ok=True)
    if download and os.access(root, os.W_OK):
        with filelock.FileLock(root / ".download.lock"):
            yield
    else:
        yield


def _folder(root: Path | None, part: Part, download: bool, image_size: int | None, background: int = 255) -> Labelled:
    """Read a folder that has one subfolder of images for each class; a `Stream` if it is large."""
    if root is None:
        raise InputError("data_root=None: give a folder that holds one of images for each class")
    found = FolderImages(root, part, image_size, background)
    return found.load() if found.nbytes <= MOST_KEPT else Stream.of(found)


def _npz(path: Path) -> Images:
    if not path.is_file():
        raise InputError(f"dataset={str(path)!r}: no such file; make one by numpy.savez(path, images=..., labels=...)")
    if not zipfile.is_zipfile(path):
        raise InputError(f"dataset={str(path)!r}: not an .npz file, or damaged; make one by numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"dataset={str(path)!r}: not an .npz file, or damaged ({error}); make one by numpy.savez"
        ) from None
    missing = {"images", "labels"} - set(arrays)
    if missing:
        raise InputError(f"dataset={str(path)!r}: lacks {sorted(missing)}; it has {list(arrays)}")
    for name, kinds, wanted in (("images", "uif", "bytes or floats"), ("labels", "ui", "integers")):
        if arrays[name].dtype.kind not in kinds or not arrays[name].size:
            held = f"{arrays[name].size} values of type {arrays[name].dtype}"
            raise InputError(f"dataset={str(path)!r}: {name} holds {held}; need {wanted}, one image or label at least")
    kind = np.float32 if arrays["images"].dtype.kind == "f" else arrays["images"].dtype.newbyteorder("=")
    images, labels = (torch.from_numpy(arrays[n].astype(k)) for n, k in (("images", kind), ("labels", np.int64)))
    images = images.unsqueeze(1) if images.dim() == 3 else images
    classes = arrays.get("classes", arrays["labels"].max() + 1)
    if classes.size != 1 or classes.dtype.kind not in "ui":
        raise InputError(f"dataset={str(path)!r}: classes={classes}: need one integer, the number of classes")
    return Images(images, labels, int(classes))


def _sized(images: Images, image_size: int | None) -> Images:
    return images if image_size is None else images.resized(image_size)


def _only_training(name: str, part: Part) -> None:
    if part != "train":
        raise InputError(f"{part}='official': {name} has no {part} set of its own; give a number of images")


DATASETS: dict[str, Reader] = {
    "digits": _digits,
    "digits-decoys": _digits_decoys,
    "mnist": _torchvision("MNIST", "MNIST/raw", (1, 28, 28)),
    "fashion-mnist": _torchvision("FashionMNIST", "FashionMNIST/raw", (1, 28, 28)),
    "cifar-10": _torchvision("CIFAR10", "cifar-10-batches-py", (3, 32, 32)),
    "cifar-100": _torchvision("CIFAR100", "cifar-100-python", (3, 32, 32), classes=100),
    "folder": _folder,
}
"""Readers of data sets by name."""
