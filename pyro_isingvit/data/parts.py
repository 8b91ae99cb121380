"""The split of labelled images into parts that share no image."""

import hashlib
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, kind_of
from .images import Images
from .streams import Labelled, Stream, in_memory


@dataclass(frozen=True)
class Data:
    """Three parts that share no image: train on ``train``, choose on ``validation``, report scores on ``test``.

    Training images may be a `Stream`; the others are in memory.
    """

    train: Labelled
    validation: Images
    test: Images

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.shape


MOST_HELD = 10_000
"""Largest number of validation or test images that are taken from a stream, as they are kept in memory."""

FEW_HELD = 100
"""Number of validation images below which a split warns, if they are also fewer than a tenth of the training images."""


def split(
    everything: Labelled,
    train: int,
    test: int | Labelled | None = None,
    validation: int | Labelled | None = None,
    seed: int = 0,
    balanced: bool = False,
) -> Data:
    """Split images at random into training, validation and test images.

    In a random order of the images, the first are for testing, the next for validation, and those after for training.

    Args:
        everything: all images, except for those of an official test set. Of a `Stream` the training images remain
            one, and validation and test images are at most `MOST_HELD` each.
        train: number of training images.
        test: number of test images, a tenth of ``everything`` if None (as published); or the images of an official
            test set.
        validation: number of validation images, or the images of an official validation set; if None, as many as
            ``train``, but at most 2,000 and at most as many as are left.
        seed: seed of the random order.
        balanced: whether the numbers of training images of the classes are equal, up to a difference of one.

    Returns:
        The three parts.

    Raises:
        InputError: if there are too few images (of a class, if ``balanced``), a number is below 1, or the images of
            ``test`` or ``validation`` differ from the others in shape or number of classes.

    Warns:
        UserWarning: if images of one part are also in another, a class of the others has no training image, or few
            images are left for validation.
    """
    if not isinstance(everything, Labelled):
        raise InputError(f"everything={kind_of(everything)}: give Images, as iv.read returns and a TestBed has")
    for name, part in (("test", test), ("validation", validation)):
        if isinstance(part, Labelled) and (part.shape, part.classes) != (everything.shape, everything.classes):
            raise InputError(
                f"{name} of shape {part.shape} and {part.classes} classes: the other images have shape "
                f"{everything.shape} and {everything.classes}"
            )
    first, held = _numbers(len(everything), train, test, validation)
    if validation is None and held < min(FEW_HELD, train / 10):
        warnings.warn(
            f"validation: {held} of {len(everything)} images are left for it, too few to choose a temperature by; take "
            f"fewer than train={train}, or say how many by validation",
            UserWarning,
            stacklevel=2,
        )

    def kept(part: Labelled) -> Images:
        return in_memory(part, MOST_HELD, seed)

    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    rest = order[first + held :]
    data = Data(
        train=everything[_balanced(rest, everything, train) if balanced else rest[:train]],
        validation=kept(validation if isinstance(validation, Labelled) else everything[order[first : first + held]]),
        test=kept(test if isinstance(test, Labelled) else everything[order[:first]]),
    )
    _warn_of_copies(data)
    _warn_of_absent(data)
    return data


def _numbers(total: int, train: int, test: int | Labelled | None, validation: int | Labelled | None) -> tuple[int, int]:
    """How many of all images are for testing and for validation; 0 where these are images of their own."""
    for name, value in (("train", train), ("test", test), ("validation", validation)):
        if not isinstance(value, int | Images | Stream | None) or isinstance(value, bool):
            raise InputError(f"{name}={value!r}: give a number of images, as an integer")
    tenth = max(1, total // 10)
    first = 0 if isinstance(test, Labelled) else tenth if test is None else test
    if isinstance(validation, Labelled):
        held = spared = 0
    elif validation is None:
        held, spared = max(1, min(train, 2000, total - train - first)), tenth
    else:
        held = spared = validation
    for name, value, given in (("train", train, None), ("validation", held, validation), ("test", first, test)):
        if value < 1 and not isinstance(given, Labelled):
            raise InputError(f"{name}={value}: need at least one image")
    if train + held + first > total:
        fix = _fewer(total - first - spared)
        raise InputError(f"train={train} with validation={held} and test={first}: there are only {total} images; {fix}")
    return first, held


def _warn_of_copies(data: Data) -> None:
    seen: set[bytes] = set()
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if isinstance(part, Stream):
            continue
        digests = [
            hashlib.blake2b(i.cpu().contiguous().numpy().tobytes(), digest_size=16).digest() for i in part.images
        ]
        copies = sum(digest in seen for digest in digests)
        if copies:
            warnings.warn(
                f"{copies} of {len(part)} {name} images are equal to images of another part: scores on them are too "
                "good; remove copies",
                UserWarning,
                stacklevel=3,
            )
        seen.update(digests)


def _warn_of_absent(data: Data) -> None:
    if data.train.kind != "classes":
        return
    there = [part.labels.bincount(minlength=data.classes) for part in (data.train, data.validation, data.test)]
    absent = [_named(data.train, int(k)) for k in ((there[0] == 0) & (there[1] + there[2] > 0)).nonzero()]
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        warnings.warn(
            f"{len(absent)} of {data.classes} classes ({shown}) have no training image, and cannot be predicted: give "
            "more training images, balanced=True, or another seed",
            UserWarning,
            stacklevel=3,
        )


def _named(images: Labelled, k: int) -> str:
    return repr(images.names[k]) if images.names else str(k)


def _balanced(order: Tensor, everything: Labelled, count: int) -> Tensor:
    """The first ``count`` indices of an order with an equal share for each class, in that order."""
    labels, classes = everything.labels[order], everything.classes
    if everything.kind != "classes":
        raise InputError(f"balanced=True: labels are {everything.kind}; only classes can be balanced")
    if count < classes:
        raise InputError(f"train={count}, balanced: needs one image at least of each of {classes} classes")
    rank = torch.zeros_like(labels)
    for k in range(classes):
        own = labels == k
        rank[own] = torch.arange(int(own.sum()))
    shares = torch.full((classes,), count // classes)
    shares[: count % classes] += 1
    there = labels.bincount(minlength=classes)
    if (there < shares).any():
        k = int((there < shares).nonzero()[0])
        raise InputError(
            f"train={count}, balanced: class {_named(everything, k)} has {int(there[k])} images left for training, not "
            f"{int(shares[k])}; {_fewer(int(there.min()) * classes)}"
        )
    return order[rank < shares[labels]]


def _fewer(most: int) -> str:
    return f"train={most} or fewer would do" if most > 0 else "give more images, or fewer to the other parts"
