"""The fits of a mixture's members: side by side, each in a process of its own, or one after the other in this one."""

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..data import Images
from ..errors import InputError, InterruptedFitError, TrainingError
from ..files import storing
from ..guides import Guide
from ..processes import Children, end_with_parent
from .config import FitConfig
from .events import Event, StepTaken, WentBack
from .fit import fit
from .result import FitResult
from .signals import listening


@dataclass(frozen=True)
class Order:
    """What a member's process has to do: the arguments of `fit`."""

    member: int
    guide: Guide
    train: Images
    validation: Images | None
    config: FitConfig
    checkpoint: Path | None
    resume: bool
    interval: float
    scratch: Path

    def fit(self) -> FitResult:
        saving: dict[str, Any] = {"checkpoint": self.checkpoint, "resume": self.resume, "interval": self.interval}
        steps = _steps(self.scratch)

        def listen(event: Event) -> None:
            if isinstance(event, StepTaken | WentBack):
                steps[self.member] = event.step

        return fit(self.guide, self.train, self.validation, self.config, False, [listen], **saving)


def fit_all(orders: Sequence[Order], jobs: int | None) -> tuple[list[FitResult], bool]:
    """Fit members, in this process or in some of their own; returns results, and whether they ran side by side."""
    threads = torch.get_num_threads()
    if jobs is None:
        alone = threads == 1 or orders[0].config.torch_device().type != "cpu"
        jobs = 1 if alone else 2 * threads
    jobs = min(jobs, len(orders))
    if jobs == 1:
        return [order.fit() for order in orders], False
    children = Children()
    with listening(orders[0].checkpoint is not None) as told, ThreadPoolExecutor(jobs) as pool:
        each = [pool.submit(_in_a_process, order, children, max(1, threads // jobs)) for order in orders]
        try:
            while wait(each, 0.1, FIRST_EXCEPTION).not_done:
                if told.signal is not None:
                    children.stop(told.signal)
                    wait(each)  # each saves a checkpoint
                for one in each:
                    if one.done():
                        one.result()
            if told.signal is not None:
                raise InterruptedFitError("stopped after the last step", told.signal)
            done = [one.result() for one in each]
        except BaseException as error:
            children.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            if told.signal is not None and not isinstance(error, InterruptedFitError):
                raise InterruptedFitError("stopped", told.signal) from None
            raise
    for order, (_, notes) in zip(orders, done, strict=True):
        for kind, note in notes:
            warnings.warn(f"member {order.member}: {note}", kind, stacklevel=3)
    return [result for result, _ in done], True


def _in_a_process(order: Order, children: Children, threads: int) -> tuple[FitResult, list[tuple[type, str]]]:
    """Fit a member in a process of its own, see `main`; returns what it warned of, too."""
    path = order.scratch / str(order.member)
    with storing(path):
        path.write_bytes(cloudpickle.dumps(order))
    code, said = children.run(__name__, str(path), threads)
    done = path.with_suffix(".done")
    if not done.exists():
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise TrainingError(f"member {order.member}: its process ended with code {code} ({last})")
    found, notes = cloudpickle.loads(done.read_bytes())
    done.unlink()
    if isinstance(found, FitResult):
        return found, notes
    kind, message, number = found
    if kind is InterruptedFitError:
        raise InterruptedFitError(message, number)
    raise kind(f"member {order.member}: {message}")


def main() -> None:
    """Entry point of a member's process, which reads from standard input the path of its order."""
    path = Path(sys.stdin.readline().strip())
    threading.Thread(target=end_with_parent, daemon=True).start()
    order = cloudpickle.loads(path.read_bytes())
    path.unlink()
    found: Any
    with warnings.catch_warnings(record=True) as notes:
        try:
            found = order.fit()
        except InterruptedFitError as error:
            found = InterruptedFitError, str(error), error.signal
        except (InputError, TrainingError, OSError) as error:
            found = type(error), str(error), None
    draft = path.with_suffix(".draft")
    draft.write_bytes(cloudpickle.dumps((found, [(note.category, str(note.message)) for note in notes])))
    draft.replace(path.with_suffix(".done"))


def _steps(scratch: Path) -> Any:
    """The number of steps that each member has taken, which all processes see."""
    return np.memmap(scratch / "steps", np.int64, "r+")


@contextmanager
def progress_bar(scratch: Path, guides: Sequence[Guide], config: FitConfig, progress: bool) -> Iterator[None]:
    """Context with a progress bar of the steps of all members."""
    members, title = len(guides), f"{len(guides)} of {type(guides[0]).__name__}"
    (scratch / "steps").write_bytes(bytes(8 * members))
    steps = _steps(scratch)

    class Bar(Progress):
        def get_renderables(self) -> Any:
            for task in self.task_ids:
                self.update(task, completed=int(steps.sum()))
            yield from super().get_renderables()

    bar = Bar(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), disable=not progress)
    bar.add_task(title, total=members * config.steps)
    with suppress(OSError, ValueError, SystemExit):  # closed or full
        bar.start()
    try:
        yield
    finally:
        with suppress(OSError, ValueError, SystemExit):
            bar.stop()
