"""The images of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data import Data, Labelled, read, split
from ..data.folders import Part
from ..errors import InputError
from .recipes import RunConfig
from .record import RunFacts, Unfinished, check_images, check_official


def load(config: RunConfig, everything: Labelled, download: bool = False) -> Data:
    """Split the images of a run into training, validation and test images.

    Args:
        config: configuration of the run.
        everything: training images of the data set.
        download: whether missing files are downloaded.

    Raises:
        InputError: if the official test images cannot be read, or there are not enough images.
    """

    def own(part: Part, given: int | str | None) -> int | Labelled | None:
        if isinstance(given, str):
            return read_images(config, part, download)
        return given

    test, validation = own("test", config.test), own("validation", config.validation)
    return split(everything, config.train, test, validation, config.fit.seed, config.balanced)


def read_images(config: RunConfig, part: Part = "train", download: bool = False) -> Labelled:
    """Read all images of a part of a run's data set; see `pyro_isingvit.read`."""
    return read(config.dataset, config.data_root, part, download, config.image_size, config.background)


def same_images(config: RunConfig, known: Unfinished | RunFacts, folder: Path) -> tuple[Labelled, Data]:
    """All images of a run's data set, and those of the run, once it is sure that they are the same as before.

    Raises:
        InputError: if they are not, or cannot be read.
    """
    with _needed(folder):
        everything = read_images(config)
    check_images(everything, known.images, folder)
    with _needed(folder):
        data = load(config, everything)
    check_official(config, data, known.official, folder)
    return everything, data


@contextmanager
def _needed(folder: Path) -> Iterator[None]:
    """Context in which the error of a data set that cannot be read says what it is needed for."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"run={str(folder)!r}: the images of its data set cannot be read ({error}); give the folder that has them "
            "with --data-root (data_root in Python)"
        ) from None
