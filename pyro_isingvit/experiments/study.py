"""Studies: each run of a plan is a process that writes one file, so a study can be interrupted and started again."""

import json
import sys
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..config import Config
from ..data import Labelled, read
from ..errors import InputError, StorageError
from ..files import read_facts, read_tensors, storing, write, write_tensors
from ..processes import Children, end_with_parent, peak_memory
from .images import load
from .methods import outcomes
from .outcome import Outcome
from .place import check_place
from .plan import FORMAT, Cell, Plan
from .recipes import RunConfig, recipe
from .record import versions


@dataclass(frozen=True)
class Result:
    """The result of a cell, as its file holds it.

    Attributes:
        cell: the cell that was run.
        config: its whole configuration.
        labels: labels of the test images, (n,).
        outcomes: outcomes of the method, see `pyro_isingvit.experiments.methods.outcomes`.
        memory: peak memory of the process, in MiB; NaN if it is not known.
        images: fingerprint of the data set's images, see `Images.fingerprint`.
    """

    cell: Cell
    config: RunConfig
    labels: Tensor
    outcomes: list[Outcome]
    memory: float
    images: str


def run_cell(cell: Cell, out: Path, roots: Mapping[str, str], download: bool = False, progress: bool = False) -> Path:
    """Run a cell and write its result, unless the result already exists.

    A second process that runs the same cell waits for the first.

    Args:
        cell: the cell to run.
        out: folder of the study.
        roots: folders of the data sets' files by the name of the data set; the key ``""`` is for all others.
        download: whether missing files are downloaded.
        progress: whether to show progress bars.

    Returns:
        Path of the result.

    Raises:
        InputError: see `run_study` and `fit`.
        TrainingError: see `fit`.
    """
    folder = out / "cells"
    check_place(folder)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.key}.safetensors"
    with filelock.FileLock(folder / f".{cell.key}.lock"):
        for left in folder.glob(f".{cell.key}*.tmp"):  # left by a process that was killed
            left.unlink(missing_ok=True)
        if not path.exists():
            _write(_run(cell, folder, roots, download, progress), path)
    return path


def read_result(path: Path) -> Result:
    """Read the result of a cell from its file.

    Raises:
        InputError: if the file is not a result, is damaged, or has another format.
    """
    tensors, facts = read_tensors(path)
    known = _facts(facts, path)
    try:
        each = [Outcome.of(numbers, tensors[f"probs/{i}"]) for i, numbers in enumerate(known.outcomes)]
        return Result(known.cell, known.config, tensors["labels"], each, known.memory, known.images)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a result ({error!r}); remove it and run the study again") from None


class _Facts(Config):
    """The contents of a result's file except its tensors."""

    model_config = Config.model_config | {"allow_inf_nan": True}

    format: int
    cell: Cell
    config: RunConfig
    outcomes: tuple[dict[str, Any], ...]
    memory: float
    images: str
    versions: dict[str, str]
    threads: int


def _facts(facts: Mapping[str, Any], path: Path) -> _Facts:
    if facts.get("format") != FORMAT:
        raise InputError(f"{path}: format={facts.get('format')!r}; this version reads {FORMAT}")
    try:
        return _Facts(**facts)
    except InputError as error:
        raise InputError(f"{path}: not a result ({error}); remove it and run the study again") from None


def results(plan: Plan, out: Path) -> list[Result]:
    """The results of a plan that exist, in the order of the plan's cells. Of one that is damaged, a warning says so.

    Raises:
        InputError: if two results of the same data set were made from different images.
    """
    every: dict[Path, Result] = {}
    for cell in plan.cells():
        path = out / "cells" / f"{cell.key}.safetensors"
        if path.exists():
            try:
                every[path] = read_result(path)
            except InputError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
    known: dict[tuple[Any, ...], str] = {}
    for path, result in every.items():
        cell = result.cell
        before = known.setdefault(cell.reads, result.images)
        if before != result.images:
            raise InputError(
                f"{path}: of other images of {cell.dataset!r} ({result.images}) than the results before it ({before}); "
                "remove those of one, and run the study again"
            )
    return list(every.values())


def _refuse_others(cell: Cell, images: Labelled, folder: Path) -> None:
    """Raise an `InputError` if results in a folder were made from other images of the same data set."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            facts = _facts(read_facts(path), path)
        except InputError:  # damaged, or of another version, which the report will say
            continue
        if facts.cell.reads == cell.reads and facts.images != images.fingerprint:
            raise InputError(
                f"data_root: {cell.dataset!r} there is other images ({images.fingerprint}) than {path} is of "
                f"({facts.images}); give the data_root of those, or another folder for the results"
            )


def run_study(
    plan: Plan,
    out: Path,
    roots: Mapping[str, str],
    jobs: int = 1,
    download: bool = False,
    progress: bool = True,
) -> dict[str, str]:
    """Run the cells of a plan that have no result yet, each in a process of its own.

    Args:
        plan: the plan to run.
        out: folder of the study.
        roots, download: see `run_cell`.
        jobs: number of processes at a time; they share the processors.
        progress: whether to show a progress bar.

    Returns:
        Error messages by the key of the cell; empty if all cells succeeded.

    Raises:
        InputError: if ``jobs`` is not positive, a data set cannot be read or has other images than earlier results, a
            setting does not fit, or the folder ``out`` cannot be made.
    """
    if jobs < 1:
        raise InputError(f"jobs={jobs}: need at least one")
    cells, folder = plan.cells(), out / "cells"
    missing = [cell for cell in cells if not (folder / f"{cell.key}.safetensors").exists()]
    check_place(folder)
    of_each: dict[str, list[Cell]] = {}
    for cell in missing:
        of_each.setdefault(repr(cell.reads), []).append(cell)  # as text, since settings are not checked yet
    for alike in of_each.values():  # files are downloaded and settings checked once, before any cell starts
        everything = _read(alike[0], folder, roots, download)
        for cell in alike:
            _config(cell, everything, roots)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    children = Children()
    with Progress(*columns, disable=not progress) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task(plan.name, total=len(cells), completed=len(cells) - len(missing))

        def start(cell: Cell) -> None:
            error = _process(cell, out, roots, jobs, children)
            if error:
                failures[cell.key] = error
            elif progress and _log(cell, out).exists():
                bar.console.print(f"{cell.key} warns: see {_log(cell, out)}", highlight=False, soft_wrap=True)
            bar.advance(task)

        try:
            list(pool.map(start, missing))
        except BaseException:  # such as an interrupt
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise
    return failures


def _process(cell: Cell, out: Path, roots: Mapping[str, str], jobs: int, children: Children) -> str:
    """Run a cell in a process; returns its error message, if any. The log gets what it wrote to standard error."""
    order = json.dumps({"cell": cell.model_dump(mode="json"), "out": str(out), "roots": dict(roots)})
    code, said = children.run(__name__, order, max(1, torch.get_num_threads() // jobs))
    log = _log(cell, out)
    try:
        if code or said.strip():
            write(log, said)
        else:
            log.unlink(missing_ok=True)  # left by an earlier failure
        place = f" ({log})"
    except StorageError:  # such as a full disk, of which the cell has told
        place = ""
    if code == 0:
        return ""
    if code < 0:
        return f"killed by signal {-code}{place}"
    return f"{(said.strip().splitlines() or ['no message'])[-1]}{place}"


def _log(cell: Cell, out: Path) -> Path:
    return out / "cells" / f"{cell.key}.log"


def main() -> None:
    """Entry point of a cell's process, which reads from standard input what to run."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    run_cell(Cell(**order["cell"]), Path(order["out"]), order["roots"])


def _run(cell: Cell, folder: Path, roots: Mapping[str, str], download: bool, progress: bool) -> Result:
    everything = _read(cell, folder, roots, download)
    config = _config(cell, everything, roots)
    data = load(config, everything, download)
    each = list(outcomes(config, cell.method, data, progress))
    return Result(cell, config, data.test.labels, each, peak_memory(), everything.fingerprint)


def _write(result: Result, path: Path) -> None:
    facts = {
        "format": FORMAT,
        "cell": result.cell.model_dump(mode="json"),
        "config": result.config.model_dump(mode="json") | {"data_root": None},
        "outcomes": [outcome.facts() for outcome in result.outcomes],
        "memory": result.memory,
        "images": result.images,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    tensors = {"labels": result.labels} | {f"probs/{i}": o.probs for i, o in enumerate(result.outcomes)}
    write_tensors(path, tensors, facts)


def _read(cell: Cell, folder: Path, roots: Mapping[str, str], download: bool) -> Labelled:
    """The images of a cell, which have to be those of the results in a folder."""
    dataset, image_size, background = cell.reads
    everything = read(dataset, _root(dataset, roots), "train", download, image_size, background)
    _refuse_others(cell, everything, folder)
    return everything


def _config(cell: Cell, everything: Labelled, roots: Mapping[str, str]) -> RunConfig:
    root = _root(cell.dataset, roots)
    settings = recipe(cell.dataset, everything, cell.train, root)
    settings.pop("members", None)  # how many there are is a setting of the methods
    return cell.run_config(settings, root)


def _root(dataset: str, roots: Mapping[str, str]) -> str | None:
    return roots.get(dataset, None if dataset == "digits" else roots.get(""))
