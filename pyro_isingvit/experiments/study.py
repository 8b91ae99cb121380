"""Studies: the runs of a plan, each a process that writes one file; killed and started again, nothing is lost."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import safetensors
import safetensors.torch
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..data import Images, read
from ..errors import InputError
from .methods import outcomes
from .outcome import Outcome
from .plan import FORMAT, Cell, Plan
from .recipes import RunConfig, recipe
from .runs import check_place, load, versions


@dataclass(frozen=True)
class Result:
    """What a cell's file holds.

    Attributes:
        cell: that was run.
        config: that it came to.
        labels: of the test images, (n,).
        outcomes: what the method predicted, each of its ways.
        memory: peak of the process, in MiB.
        images: fingerprint of the data set's images, see `Images.fingerprint`.
    """

    cell: Cell
    config: RunConfig
    labels: Tensor
    outcomes: list[Outcome]
    memory: float
    images: str


def run_cell(cell: Cell, out: Path, roots: Mapping[str, str], download: bool = False, progress: bool = False) -> Path:
    """Run a cell and write its result; nothing is done if it is there, and a second process waits for the first.

    Args:
        cell: what to run.
        out: the study's folder.
        roots: folders of data sets' files by name; ``""`` is for all others.
        download: whether files that are not there are fetched.
        progress: whether to show progress bars.

    Returns:
        Path of the result.

    Raises:
        InputError, TrainingError: see `fit`.
    """
    folder = out / "cells"
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.key}.safetensors"
    with filelock.FileLock(folder / f".{cell.key}.lock"):
        for left in folder.glob(f".{cell.key}-*.tmp"):  # of a process that was killed
            left.unlink()
        if not path.exists():
            _write(_run(cell, folder, roots, download, progress), path)
    return path


def read_result(path: Path) -> Result:
    """A cell's result from its file.

    Raises:
        InputError: if it is none, or of another format.
    """
    facts = _facts(path)
    with _damage_named(path):
        tensors = safetensors.torch.load_file(path)
    each = [Outcome.of(numbers, tensors[f"probs/{i}"]) for i, numbers in enumerate(facts["outcomes"])]
    cell, config = Cell(**facts["cell"]), RunConfig(**facts["config"])
    return Result(cell, config, tensors["labels"], each, facts["memory"], facts["images"])


def _facts(path: Path) -> dict[str, Any]:
    """What a result's file holds beside tensors; see `read_result`."""
    with _damage_named(path), safetensors.safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("study", "{}"))
    if facts.get("format") != FORMAT:
        raise InputError(f"{path}: format={facts.get('format')!r}; this version reads {FORMAT}")
    return dict(facts)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"{path}: not a result, or damaged ({error}); remove it and run the study again") from None


def results(plan: Plan, out: Path) -> list[Result]:
    """The results of a plan's cells that are there, in the plan's order.

    Raises:
        InputError: if one is damaged, or two are of one data set's name but of other images.
    """
    paths = [out / "cells" / f"{cell.key}.safetensors" for cell in plan.cells()]
    every = {path: read_result(path) for path in paths if path.exists()}
    known: dict[tuple[str, int | None], str] = {}
    for path, result in every.items():
        cell = result.cell
        before = known.setdefault((cell.dataset, cell.image_size), result.images)
        if before != result.images:
            raise InputError(
                f"{path}: of other images of {cell.dataset!r} ({result.images}) than the results before it ({before}); "
                "remove those of one, and run the study again"
            )
    return list(every.values())


def _refuse_others(cell: Cell, images: Images, folder: Path) -> None:
    """Refuse to add results of other images of a data set than those that results in a folder are of."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            facts = _facts(path)
            there = Cell(**facts["cell"])
        except InputError:  # damaged, or of another version: the report says so
            continue
        same = (there.dataset, there.image_size) == (cell.dataset, cell.image_size)
        if same and facts["images"] != images.fingerprint:
            raise InputError(
                f"data_root: {cell.dataset!r} there is other images ({images.fingerprint}) than {path} is of "
                f"({facts['images']}); give the data_root of those, or another folder for the results"
            )


def run_study(
    plan: Plan,
    out: Path,
    roots: Mapping[str, str],
    jobs: int = 1,
    download: bool = False,
    progress: bool = True,
) -> dict[str, str]:
    """Run what is missing of a plan, each cell in a process of its own.

    Args:
        plan: what to run.
        out: the study's folder.
        roots, download: see `run_cell`.
        jobs: processes at a time; they share the processors.
        progress: whether to show a progress bar.

    Returns:
        What went wrong, by the key of the cell; empty if all went well.

    Raises:
        InputError: if ``jobs`` is not positive, a data set cannot be read or is not what earlier results are of, a
            setting does not fit, or there can be no folder ``out``.
    """
    if jobs < 1:
        raise InputError(f"jobs={jobs}: need at least one")
    cells, folder = plan.cells(), out / "cells"
    missing = [cell for cell in cells if not (folder / f"{cell.key}.safetensors").exists()]
    check_place(folder)
    of_each: dict[tuple[str, str], list[Cell]] = {}
    for cell in missing:
        of_each.setdefault((cell.dataset, str(cell.image_size)), []).append(cell)
    for alike in of_each.values():  # refused, or fetched, once and before any starts
        first, root = alike[0], _root(alike[0].dataset, roots)
        everything = read(first.dataset, root, download=download, image_size=first.image_size)
        _refuse_others(first, everything, folder)
        for cell in alike:
            cell.run_config(recipe(cell.dataset, everything, cell.train), root)
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, disable=not progress) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task(plan.name, total=len(cells), completed=len(cells) - len(missing))

        def start(cell: Cell) -> None:
            error = _process(cell, out, roots, jobs)
            if error:
                failures[cell.key] = error
            elif progress and _log(cell, out).exists():
                bar.console.print(f"{cell.key} warns: see {_log(cell, out)}", highlight=False, soft_wrap=True)
            bar.advance(task)

        list(pool.map(start, missing))
    return failures


def _process(cell: Cell, out: Path, roots: Mapping[str, str], jobs: int) -> str:
    """Run a cell in a process; returns what it said if it failed. What it wrote to standard error is in its log."""
    order = json.dumps({"cell": cell.model_dump(mode="json"), "out": str(out), "roots": dict(roots)})
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // jobs))
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        input=order,
        env=os.environ | {"OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    log = _log(cell, out)
    if done.returncode or done.stderr.strip():
        log.write_text(done.stderr)
    else:
        log.unlink(missing_ok=True)  # of an earlier failure
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}; {log} has what it said"
    return f"{(done.stderr.strip().splitlines() or ['no message'])[-1]} ({log})"


def _log(cell: Cell, out: Path) -> Path:
    return out / "cells" / f"{cell.key}.log"


def main() -> None:
    """Entry point of a cell's process: what to run comes on standard input."""
    order = json.load(sys.stdin)
    run_cell(Cell(**order["cell"]), Path(order["out"]), order["roots"])


def _run(cell: Cell, folder: Path, roots: Mapping[str, str], download: bool, progress: bool) -> Result:
    root = _root(cell.dataset, roots)
    everything = read(cell.dataset, root, download=download, image_size=cell.image_size)
    _refuse_others(cell, everything, folder)
    config = cell.run_config(recipe(cell.dataset, everything, cell.train), root)
    data = load(config, everything, download)
    each = list(outcomes(config, cell.method, data, progress))
    return Result(cell, config, data.test.labels, each, _peak_memory(), everything.fingerprint)


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
    tensors = {"labels": result.labels} | {f"probs/{i}": o.probs.contiguous() for i, o in enumerate(result.outcomes)}
    handle, draft = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    safetensors.torch.save_file(tensors, draft, {"study": json.dumps(facts)})
    os.chmod(draft, 0o644)
    os.replace(draft, path)


def _peak_memory() -> float:
    """Of this process, in MiB; NaN where the system does not tell."""
    status = Path("/proc/self/status")  # Linux; its getrusage has what the parent held before this program was started
    if status.exists():
        lines = [line.split() for line in status.read_text().splitlines()]
        return next((float(line[1]) / 2**10 for line in lines if line and line[0] == "VmHWM:"), float("nan"))
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _root(dataset: str, roots: Mapping[str, str]) -> str | None:
    return roots.get(dataset, None if dataset == "digits" else roots.get(""))
