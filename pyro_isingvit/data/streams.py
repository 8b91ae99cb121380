"""Labelled images that are read when they are needed, from a torch data set or data loader."""

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)
from torch.utils.data import default_collate as _torchs_own

from ..errors import InputError, kind_of
from .folders import as_bytes
from .images import Images, checked_pixels

KEPT = ("num_workers", "pin_memory", "worker_init_fn", "multiprocessing_context", "prefetch_factor", "timeout")
"""Settings of a data loader that are used as they are."""

AT_ONCE = 2**28
"""Bytes of images that are read at once for predictions."""


@dataclass(frozen=True)
class Stream:
    """Labelled images of a map-style torch data set, which are read batch by batch.

    Attributes:
        dataset: an indexable data set with a length, of pairs (image, label). Images are PIL images, or tensors
            (channels, height, width) of bytes or of floats within [0, 1], all of one shape. Labels are as in `Images`.
        classes: number of classes, of numbers, or of labels of an image; 0 if only the network knows.
        names: names of the classes, in order; empty if they have none.
        options: settings of the `DataLoader` that reads it.
        batch_size: images of a batch, if a data loader said so.

    Raises:
        InputError: if the data set has no length, cannot be indexed, or is empty.
    """

    dataset: Any
    classes: int = 0
    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise InputError(
                f"dataset={kind_of(self.dataset)}: needs a length N, by which the likelihood of a batch is scaled, and "
                "items by number, as a map-style torch Dataset has them"
            )
        if not len(self.dataset):
            raise InputError("dataset: holds no image; give at least one")

    @classmethod
    def of(cls, given: Any) -> "Stream":
        """The stream of a torch `Dataset` or `DataLoader`.

        Of a data loader its data set, batch size, workers, pinning and collation are used. Batches are drawn anew in
        each pass, without replacement, as the model says that all images count once.

        Raises:
            InputError: if it is neither, or the data loader draws batches in another way.
        """
        if not isinstance(given, DataLoader):
            names = getattr(given, "classes", ())
            named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
            return cls(given, len(names) if named else 0, tuple(names) if named else ())
        if isinstance(given.dataset, IterableDataset):
            return cls(given.dataset)  # which says why not
        batches: Any = given.batch_sampler
        sampler: Any = batches.sampler if type(batches) is BatchSampler else batches
        plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
        if not plain or len(sampler) != len(cast(Sized, given.dataset)):
            kind = "batch_size=None" if sampler is None else f"sampler={kind_of(sampler)}"
            raise InputError(
                f"{kind}: batches are drawn here, without replacement and for all devices; give a loader with a batch "
                "size and without a sampler of its own; Classes(weights) weighs classes in a fit"
            )
        options = {name: getattr(given, name) for name in KEPT}
        if given.collate_fn is not _torchs_own:
            options["collate_fn"] = given.collate_fn
        return replace(cls.of(given.dataset), options=options, batch_size=batches.batch_size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Tensor) -> "Stream":
        """A part of it, which is not read yet."""
        return replace(self, dataset=Subset(self.dataset, index.tolist()))

    def to(self, device: torch.device | str) -> "Stream":
        """Itself, as its batches are moved when they are read; see `Images.to`."""
        return self

    @cached_property
    def first(self) -> Images:
        """Its first image, in memory."""
        own = {name: value for name, value in self.options.items() if name == "collate_fn"}
        return replace(self, options=own).read(torch.zeros(1, dtype=torch.long))

    @property
    def kind(self) -> str:
        """Kind of the labels, see `Images.kind`."""
        return self.first.kind

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.first.shape

    @property
    def labels(self) -> Tensor:
        """The labels of all images, (n,).

        Raises:
            InputError: if the data set does not know them without reading its images.
        """
        labels = _targets(self.dataset)
        if labels is None:
            raise InputError(f"dataset={kind_of(self.dataset)}: has no targets, by which to know all labels at once")
        return labels

    @property
    def fingerprint(self) -> str:
        """Number, shape and a hash of what is known without reading all images."""
        said = getattr(self.dataset, "fingerprint", None)
        if isinstance(said, str):
            return said
        labels = _targets(self.dataset)
        digest = hashlib.sha256(b"" if labels is None else labels.numpy().tobytes()).hexdigest()[:12]
        return f"{len(self)} of {'x'.join(map(str, self.shape))} read from a {type(self.dataset).__name__}, {digest}"

    def batches(self, order: Iterable[Tensor], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batches, whose indices are given, in order.

        Args:
            order: indices (batch,) of one batch after another; it may be endless.
            seed: seed of the workers, for transformations that are random.

        Returns:
            Images (batch, channels, height, width), bytes or float32 within [0, 1], and labels, on the CPU.
        """
        options = {"collate_fn": collated, **self.options}
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=_Lists(order),
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        try:
            for batch in loader:
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    raise InputError(f"collate_fn: gave {kind_of(batch)}; give pairs (images, labels)")
                images, labels = batch
                some = Images(images, labels, self.classes or _classes(labels))
                yield some.images, some.labels
        except InputError as error:  # a worker's has its traceback in the text
            raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from None

    def read(self, index: Tensor) -> Images:
        """Some of its images, in memory."""
        parts = list(self.batches(index.split(250)))
        images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return Images(images, labels, self.classes or _classes(labels), names=self.names)


Labelled = Images | Stream
"""Labelled images, in memory or not."""

Source = Labelled | Dataset[Any] | DataLoader[Any]
"""Labelled images as users give them: `Images`; a map-style torch `Dataset` of pairs (image, label), which is read
batch by batch; or a `DataLoader` of one, see `Stream.of`."""

Unlabelled = Tensor | Dataset[Any] | DataLoader[Any]
"""Images to predict: in memory; or items of a data set, of which labels are not read."""


class _Lists:
    """Indices as a data loader wants them."""

    def __init__(self, order: Iterable[Tensor]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.order)


def labelled(given: Any, name: str = "train") -> Labelled:
    """Labelled images as everything here takes them, from `Images`, a map-style torch `Dataset`, or a `DataLoader`.

    Raises:
        InputError: if it is neither, or does not fit, see `Stream`.
    """
    if isinstance(given, Images | Stream):
        return given
    if isinstance(given, Dataset | DataLoader) or (hasattr(given, "__getitem__") and _of_pairs(given)):
        try:
            return Stream.of(given)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    raise InputError(f"{name}={kind_of(given)}: give Images, a torch Dataset of pairs (image, label), or a DataLoader")


def in_memory(given: Labelled, most: int | None = None, seed: int = 0) -> Images:
    """Labelled images in memory; of a stream at most so many, drawn without replacement, or all if None."""
    if isinstance(given, Images):
        return given
    chosen = torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))[:most]
    return given.read(chosen.sort().values)


def some_of(given: Labelled) -> Images:
    """The first of labelled images, in memory."""
    return given.first if isinstance(given, Stream) else given[torch.arange(1, device=given.images.device)]


def chunks_of_images(given: Any) -> Iterator[Tensor]:
    """All images, in order and some at once: those of a tensor together, those of a `Dataset` or `DataLoader` in parts.

    Its items are images, or tuples that begin with one.

    Raises:
        InputError: if they do not fit.
    """
    if not isinstance(given, Dataset | DataLoader | Stream):
        yield checked_pixels(given)
        return
    stream = given if isinstance(given, Stream) else Stream.of(given)
    unlabelled = replace(stream, dataset=_ImagesAlone(stream.dataset), classes=1, names=())
    at_once = max(1, AT_ONCE // unlabelled.first.images.nbytes)
    small = min(at_once, 250)
    held: list[Tensor] = []
    for images, _ in unlabelled.batches(torch.arange(len(stream)).split(small)):
        held.append(images)
        if len(held) * small >= at_once:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


class _ImagesAlone(Dataset[tuple[Any, int]]):
    """The images of a data set, all of class 0."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        item = self.dataset[i]
        return (item[0] if isinstance(item, tuple | list) else item), 0


def collated(items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """A batch of pairs (image, label) as tensors.

    Raises:
        InputError: if items are no such pairs, or images differ in shape.
    """
    images, labels = [], []
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"an item of the data set is {kind_of(item)}: give pairs (image, label)")
        image = item[0] if isinstance(item[0], Tensor) else None
        if image is None:
            if not hasattr(item[0], "mode"):
                raise InputError(f"an image of the data set is {kind_of(item[0])}: give PIL images or tensors")
            image = as_bytes(item[0])
        images.append(image.unsqueeze(0) if image.dim() == 2 else image)
        labels.append(item[1])
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise InputError(f"images of the data set of shapes {shapes[0]} and {shapes[1]}: resize them in the data set")
    return torch.stack(images), _label_tensor(labels)


def _label_tensor(labels: Sequence[Any]) -> Tensor:
    if any(isinstance(label, Tensor) and (label.dim() or label.is_floating_point()) for label in labels):
        return torch.stack([torch.as_tensor(label) for label in labels])
    if any(isinstance(label, float) for label in labels):
        return torch.tensor(labels)
    try:
        return torch.tensor([operator.index(label) for label in labels])
    except TypeError:
        raise InputError(f"a label of the data set is {labels[0]!r}: give integers, one class an image") from None


def _classes(labels: Any) -> int:
    """A number of classes that the labels of a batch fit in."""
    if not isinstance(labels, Tensor):
        raise InputError(f"collate_fn: labels={kind_of(labels)}; give a tensor")
    if labels.dim() == 2:
        return labels.shape[1]
    return 1 if labels.is_floating_point() else max(1, int(labels.max()) + 1)


def _targets(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        every = _targets(dataset.dataset)
        return None if every is None else every[torch.as_tensor(dataset.indices)]
    found = getattr(dataset, "targets", None)
    return None if found is None else torch.as_tensor(found)


def _of_pairs(given: Any) -> bool:
    return hasattr(given, "__len__") and not isinstance(given, Tensor | str | bytes | Mapping | list | tuple)
