"""Predictions of image files by a run, without its data set."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.files import find_files
from ..data.folders import read_sized
from ..data.streams import AT_ONCE
from ..draws import check_draws
from ..errors import InputError
from ..prediction import central_levels
from .reading import open_fit

MOST_FILES = 1000
"""Number of files that are predicted at once, at most; so many more are read meanwhile."""

READERS = min(8, os.cpu_count() or 1)
"""Number of threads that read files."""


@dataclass(frozen=True)
class FilePrediction:
    """The prediction of one image file.

    Attributes:
        path: the file.
        label: name of the most probable class; its number, if the classes have no names.
        probability: mean probability of that class over the draws.
        lower, upper: bounds of the central interval of that probability over the draws.
        entropy: of the mean probabilities, in nats: total uncertainty.
        mutual_information: between label and weights, in nats: the part of it that draws differ by.
        probs: mean probability of each class by name.
        error: why the file could not be read; empty if it was. If it was not, there are no other values.
    """

    path: Path
    label: str = ""
    probability: float = nan
    lower: float = nan
    upper: float = nan
    entropy: float = nan
    mutual_information: float = nan
    probs: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


class FilePredictor:
    """Predicts image files by the posterior of a finished run. The data set of the run is not needed.

    Files are read as in training: turned as their EXIF data say, transparent ones laid on the run's background, 16 bits
    made 8, grey repeated over three channels, colours made grey for a run of grey images, and resized to the size of
    the images that the run's network takes.

    Args:
        folder: a run folder that `run` made.
        draws: number of posterior draws; that of the run if None.
        interval: mass of the intervals, within (0, 1).
        device: ``"cpu"``, ``"cuda"``, ... or ``"auto"``: a GPU if there is one.
        network: see `evaluate`.

    Attributes:
        classes: names of the classes, in order; their numbers, if they have no names.

    Raises:
        InputError: if the folder is not a run folder or is damaged, a value is out of range, or the network takes
            images of other than 1 or 3 channels.
    """

    def __init__(
        self,
        folder: str | Path,
        draws: int | None = None,
        interval: float = 0.9,
        device: str = "auto",
        network: str | None = None,
    ) -> None:
        config, facts, result = open_fit(folder, network=network)
        where = config.fit.model_copy(update={"device": device}).torch_device()
        posterior, geometry = result.posterior, config.network
        self._posterior = posterior if where == posterior.device else posterior.to(where)
        self._draws, self._interval = config.draws if draws is None else draws, interval
        self._seed, self._background = config.fit.seed, config.background
        self._shape = geometry.channels, *geometry.image_size
        names = posterior.names or facts.classes
        self.classes = tuple(names) if names else tuple(str(label) for label in range(geometry.classes))
        check_draws(self._draws)
        central_levels(interval, where)
        if geometry.channels not in (1, 3):
            raise InputError(
                f"run={str(folder)!r}: its network takes images of {geometry.channels} channels, and image files have "
                "1 or 3; give tensors to Posterior.predict"
            )

    def predict(self, files: Sequence[str | Path]) -> Iterator[FilePrediction]:
        """Predict files, in order. Memory does not grow with their number, as they are read in parts.

        A file that cannot be read has a prediction with an ``error``.
        """
        paths = [Path(file) for file in files]
        size = max(1, min(MOST_FILES, AT_ONCE // (torch.Size(self._shape).numel())))
        parts = [paths[start : start + size] for start in range(0, len(paths), size)]
        with ThreadPoolExecutor(READERS) as pool:
            ahead = pool.map(self._read, parts[0]) if parts else iter(())
            for part, following in zip(parts, [*parts[1:], []], strict=True):
                images, ahead = list(ahead), pool.map(self._read, following)
                yield from self._predicted(part, images)

    def _read(self, path: Path) -> Tensor | str:
        """The image of a file as the network takes it, as bytes; or why it cannot be read."""
        try:
            return read_sized(path, self._shape, self._background)
        except InputError as error:
            return str(error)

    def _predicted(self, paths: Sequence[Path], images: Sequence[Tensor | str]) -> Iterator[FilePrediction]:
        read = [image for image in images if isinstance(image, Tensor)]
        rows: Iterator[tuple[Any, ...]] = iter(())
        if read:
            found = self._posterior.predict(torch.stack(read), self._draws, self._interval, self._seed)
            every = found.labels, found.probs, found.lower, found.upper, found.entropy, found.mutual_information
            rows = zip(*(each.tolist() for each in every), strict=True)
        for path, image in zip(paths, images, strict=True):
            if isinstance(image, str):
                yield FilePrediction(path, error=image)
                continue
            label, probs, lower, upper, entropy, information = next(rows)
            name, by_name = self.classes[label], dict(zip(self.classes, probs, strict=True))
            yield FilePrediction(path, name, probs[label], lower[label], upper[label], entropy, information, by_name)


def predict_files(
    folder: str | Path,
    files: Sequence[str | Path],
    draws: int | None = None,
    interval: float = 0.9,
    device: str = "auto",
    network: str | None = None,
) -> Iterator[FilePrediction]:
    """Predict image files by a finished run, in order; see `FilePredictor`.

    Args:
        files: files, folders or patterns, see `pyro_isingvit.data.files.find_files`.
        folder, draws, interval, device, network: see `FilePredictor`.

    Raises:
        InputError: see `find_files` and `FilePredictor`. A file that cannot be read is none: its prediction has an
            ``error``.
    """
    return FilePredictor(folder, draws, interval, device, network).predict(find_files(files))
