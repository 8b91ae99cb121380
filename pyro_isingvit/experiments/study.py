"""Studies: a plan of many runs, each a process that writes one file; killed and started again, nothing is lost."""

import copy
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import filelock
import pydantic
import safetensors
import safetensors.torch
import torch
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..config import Config, describe
from ..data import Images, read
from ..errors import InputError
from .methods import Method, outcomes
from .recipes import RunConfig, known_recipe, recipe
from .run import load, versions

FORMAT = 4
"""Version of the result files."""


class Block(Config):
    """A part of a plan: all combinations of its lists.

    Attributes:
        dataset: names, see `pyro_isingvit.read`.
        train: numbers of training images.
        method: names, or `Method` settings.
        seeds: in place of the plan's.
        set: settings of `RunConfig` in place of the recipe's, by dotted name, e.g. ``fit.steps: 1000``.
        vary: likewise, but lists of values that are tried in turn.
    """

    dataset: tuple[str, ...]
    train: tuple[pydantic.PositiveInt, ...]
    method: tuple[Method, ...]
    seeds: tuple[pydantic.NonNegativeInt, ...] | None = None
    set: dict[str, Any] = pydantic.Field(default={})
    vary: dict[str, tuple[Any, ...]] = pydantic.Field(default={})

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        each = value if isinstance(value, list) else [value]
        return [{"name": method} if isinstance(method, str) else method for method in each]

    @pydantic.field_validator("dataset", "train", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]


class Plan(Config):
    """What a study runs.

    Attributes:
        name: of the study.
        about: what it is for.
        seeds: of every combination.
        set: settings in place of the recipes', for all blocks; a block's own go before.
        blocks: what is combined with what.
    """

    name: str
    about: str = ""
    seeds: tuple[pydantic.NonNegativeInt, ...] = (0,)
    set: dict[str, Any] = pydantic.Field(default={})
    blocks: tuple[Block, ...]

    def cells(self) -> list["Cell"]:
        """Every run of the plan, all of the first seed before the second; each once."""
        cells = []
        for block in self.blocks:
            grid = [[(name, value) for value in values] for name, values in block.vary.items()]
            for dataset, train, method, varied in itertools.product(
                block.dataset, block.train, block.method, itertools.product(*grid)
            ):
                for seed in block.seeds or self.seeds:
                    cells.append(
                        Cell(
                            dataset=dataset,
                            train=train,
                            method=method,
                            seed=seed,
                            set=self.set | block.set,
                            varied=dict(varied),
                        )
                    )
        unique = {cell.key: cell for cell in cells}
        return sorted(unique.values(), key=lambda cell: cell.seed)


class Cell(Config):
    """One run of a study.

    Attributes:
        dataset, train, method, seed: what is run.
        set: settings in place of the recipe's, by dotted name.
        varied: likewise, those that the block varies.
    """

    dataset: str
    train: pydantic.PositiveInt
    method: Method
    seed: pydantic.NonNegativeInt
    set: dict[str, Any] = pydantic.Field(default={})
    varied: dict[str, Any] = pydantic.Field(default={})

    @property
    def key(self) -> str:
        """Name of its result file: readable, and another one if anything about the cell or its recipe differs."""
        parts = [FORMAT, self.model_dump(mode="json"), known_recipe(self.dataset, self.train)]
        settings = json.dumps(parts, sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        return f"{Path(self.dataset).stem}-{self.train}-{self.method.name}-{self.seed}-{digest}"

    @pydantic.model_validator(mode="after")
    def _leaves_the_cell_alone(self) -> Self:
        own = {"dataset", "data_root", "train", "fit.seed"} & {*self.set, *self.varied}
        if own:
            raise ValueError(f"set or vary has {sorted(own)}: dataset, train, seeds and --data-root say that")
        groups = {"network", "prior", "guide", "fit"} & {*self.set, *self.varied}
        if groups:
            raise ValueError(f"set or vary has {sorted(groups)}: name one setting each, e.g. 'fit.steps: 1000'")
        return self

    @property
    def image_size(self) -> int | None:
        """Height and width to resize to."""
        return (self.set | self.varied).get("image_size")

    @property
    def setting(self) -> str:
        """What is varied, as text."""
        return ", ".join(f"{name.rpartition('.')[-1]}={_short(value)}" for name, value in self.varied.items())

    def run_config(self, settings: Mapping[str, Any], data_root: str | None) -> RunConfig:
        """The cell's configuration on top of a recipe's settings."""
        nested: dict[str, Any] = copy.deepcopy(dict(settings))
        for name, value in {**self.set, **self.varied, "fit.seed": self.seed, "data_root": data_root}.items():
            *parents, leaf = name.split(".")
            inner = nested
            for parent in parents:
                inner = inner.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise InputError(f"set={name!r}: {parent!r} is no group of settings; see RunConfig")
            inner[leaf] = copy.deepcopy(value)
        return RunConfig(**nested)


@dataclass(frozen=True)
class Result:
    """What a cell's file holds.

    Attributes:
        cell: that was run.
        config: that it came to.
        labels: of the test images, (n,).
        outcomes: numbers of each `Outcome`, by name.
        probs: (n, classes) of each.
        memory: peak of the process, in MiB.
        images: fingerprint of the data set's images, see `Images.fingerprint`.
    """

    cell: Cell
    config: RunConfig
    labels: Tensor
    outcomes: list[dict[str, Any]]
    probs: list[Tensor]
    memory: float
    images: str


def read_plan(name: str | Path) -> Plan:
    """A plan from a YAML file, or one that ships with the package, by name.

    Raises:
        InputError: if there is none, or it is not a plan.
    """
    path = Path(name)
    shipped = shipped_plans()
    if str(name) in shipped:
        text = shipped[str(name)]
    elif path.is_file():
        text = path.read_text(errors="replace")
    else:
        raise InputError(f"plan={str(name)!r}: no such file; give one, or the name of one of {list(shipped)}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"plan={str(name)!r}: not YAML ({' '.join(str(error).split())})") from None
    try:
        return Plan.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"plan={str(name)!r}: {describe(error)}") from None


def shipped_plans() -> dict[str, str]:
    """The text of the plans that ship with the package, by name."""
    folder = resources.files(__package__) / "plans"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text() for file in files}


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
    folder = _folder(out)
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
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a result, or damaged ({error}); remove it and run the study again") from None
    probs = [tensors[f"probs/{i}"] for i in range(len(facts["outcomes"]))]
    cell, config = Cell(**facts["cell"]), RunConfig(**facts["config"])
    return Result(cell, config, tensors["labels"], facts["outcomes"], probs, facts["memory"], facts["images"])


def _facts(path: Path) -> dict[str, Any]:
    """What a result's file holds beside tensors; see `read_result`."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("study", "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"{path}: not a result, or damaged ({error}); remove it and run the study again") from None
    if facts.get("format") != FORMAT:
        raise InputError(f"{path}: format={facts.get('format')!r}; this version reads {FORMAT}")
    return dict(facts)


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


def _folder(out: Path) -> Path:
    """The folder of a study's results, made if it is not there."""
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={str(out)!r}: no folder can be made there ({error}); choose another") from None
    return out / "cells"


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
        InputError: if ``jobs`` is not positive, a data set cannot be read or is not what earlier results are of, or
            there can be no folder ``out``.
    """
    if jobs < 1:
        raise InputError(f"jobs={jobs}: need at least one")
    cells = plan.cells()
    missing = [cell for cell in cells if not (out / "cells" / f"{cell.key}.safetensors").exists()]
    of_each = {(cell.dataset, cell.image_size): cell for cell in missing}
    for cell in of_each.values():  # refused, or fetched, once and before any starts
        everything = read(cell.dataset, _root(cell.dataset, roots), download=download, image_size=cell.image_size)
        _refuse_others(cell, everything, out / "cells")
    _folder(out)
    failures: dict[str, str] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, disable=not progress) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task(plan.name, total=len(cells), completed=len(cells) - len(missing))

        def start(cell: Cell) -> None:
            error = _process(cell, out, roots, jobs)
            if error:
                failures[cell.key] = error
            bar.advance(task)

        list(pool.map(start, missing))
    return failures


def _process(cell: Cell, out: Path, roots: Mapping[str, str], jobs: int) -> str:
    """Run a cell in a process; returns what it said if it failed."""
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
    log = out / "cells" / f"{cell.key}.log"
    if done.returncode == 0:
        log.unlink(missing_ok=True)  # of an earlier failure
        return ""
    log.write_text(done.stderr)
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}; {log} has what it said"
    return f"{(done.stderr.strip().splitlines() or ['no message'])[-1]} ({log})"


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
    numbers = [{name: value for name, value in vars(outcome).items() if name != "probs"} for outcome in each]
    probs = [outcome.probs for outcome in each]
    return Result(cell, config, data.test.labels, numbers, probs, _peak_memory(), everything.fingerprint)


def _write(result: Result, path: Path) -> None:
    facts = {
        "format": FORMAT,
        "cell": result.cell.model_dump(mode="json"),
        "config": result.config.model_dump(mode="json") | {"data_root": None},
        "outcomes": result.outcomes,
        "memory": result.memory,
        "images": result.images,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    tensors = {"labels": result.labels} | {f"probs/{i}": probs.contiguous() for i, probs in enumerate(result.probs)}
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


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
