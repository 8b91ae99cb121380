"""The fits of a mixture's members: side by side, each in a process of its own, or one after the other in this one."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..data import Images
from ..data.streams import Labelled
from ..errors import InputError, InterruptedFitError, TrainingError
from ..guides import Guide
from ..processes import Children, Note
from .config import FitConfig
from .events import Event, Listener, StepTaken, WentBack
from .fit import fit
from .result import FitResult
from .signals import listening


@dataclass(frozen=True)
class Order:
    """What a member's process has to do: the arguments of `fit`."""

    member: int
    guide: Guide
    train: Labelled
    validation: Images | None
    config: FitConfig
    checkpoint: Path | None
    resume: bool
    interval: float
    devices: int
    strategy: Any
    scratch: Path
    listeners: Callable[[int], Sequence[Listener]] | None

    def fit(self) -> FitResult:
        names = ("checkpoint", "resume", "interval", "devices", "strategy")
        where: dict[str, Any] = {name: getattr(self, name) for name in names}
        steps = _steps(self.scratch)
        own = () if self.listeners is None else self.listeners(self.member)

        def listen(event: Event) -> None:
            if isinstance(event, StepTaken | WentBack):
                steps[self.member] = event.step

        return fit(self.guide, self.train, self.validation, self.config, False, [listen, *own], **where)


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
        done = children.gather(pool, each, told)
    for order, (_, notes) in zip(orders, done, strict=True):
        for kind, note in notes:
            warnings.warn(f"member {order.member}: {note}", kind, stacklevel=3)
    return [result for result, _ in done], True


def _in_a_process(order: Order, children: Children, threads: int) -> tuple[FitResult, list[Note]]:
    """Fit a member in a process of its own; returns what it warned of, too."""
    try:
        return children.call(order.fit, order.scratch / str(order.member), threads)
    except InterruptedFitError:
        raise
    except (InputError, TrainingError, OSError) as error:
        raise type(error)(f"member {order.member}: {error}") from None


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
