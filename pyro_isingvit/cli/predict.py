"""``isingvit predict``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Annotated

import typer

from ..errors import InputError
from . import options as option
from .ending import end
from .rows import Format, first_line, line


def predict_command(
    folder: option.RunFolder,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...", help="Image files, folders (read recursively, without hidden files), or patterns."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
    form: Annotated[Format, typer.Option("--format", help="csv, or jsonl: one JSON object on each line.")] = Format.CSV,
    draws: Annotated[int | None, typer.Option(help="Number of posterior draws.", show_default="the run's")] = None,
    interval: Annotated[float, typer.Option(help="Mass of the intervals, within (0, 1).")] = 0.9,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto for a GPU if there is one.")] = "auto",
    network: option.RunNetwork = None,
) -> None:
    """Predict image files: class, its probability with an interval, and uncertainty, one row an image.

    The data set of the run is not needed. A file that cannot be read has a row that says why, in the column error; the
    exit code is then 1.
    """
    from rich.console import Console
    from rich.progress import track

    from ..data.files import find_files
    from ..experiments.predict import FilePredictor
    from ..files import home

    out = None if out is None else home(out)
    if out is not None and out.is_dir():
        raise InputError(f"--out={str(out)!r} is a folder: give a file")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out={str(out)!r}: there is no folder {str(out.parent)!r}; make it first")
    found, predictor = find_files(files), FilePredictor(folder, draws, interval, device, network)
    screen, failures = Console(stderr=True), 0
    bar = partial(track, console=screen, transient=True, disable=not screen.is_terminal)
    with _output(out) as stream:
        stream.write(first_line(predictor.classes, form))
        for row in bar(predictor.predict(found), "Predicting", len(found)):
            stream.write(line(row, predictor.classes, form))
            failures += bool(row.error)
    if failures:
        end(f"{failures} of {len(found)} files could not be read; their rows say why, in the column error", 1)


@contextmanager
def _output(out: Path | None) -> Iterator[IO[bytes]]:
    """Context with a file, which is written as a whole or not at all, or standard output."""
    from ..files import writing

    if out is not None:
        with writing(out) as file:
            yield file
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
