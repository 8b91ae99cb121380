"""Processes of a study, of a mixture or of a fit on several devices, none of which outlives it."""

import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import cloudpickle

from .errors import InputError, InterruptedFitError, TrainingError
from .files import storing

Note = tuple[type[Warning], str]
"""A warning of another process: its category and text."""


class Told(Protocol):
    """Which signal has told this process to stop."""

    @property
    def signal(self) -> int | None: ...


class LostProcessError(TrainingError):
    """A process has ended without a result; the message says with which code, and what it said last."""


class Children:
    """Processes that run. Each ends when this one does, see `end_with_parent`."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def call(
        self, function: Callable[[], Any], place: Path, threads: int, environment: Mapping[str, str] | None = None
    ) -> tuple[Any, list[Note]]:
        """Call a function in a new process; returns its result, and what it warned of.

        Args:
            function: a function without arguments; it and its result are pickled, with functions and classes that are
                no module's.
            place: path of a file that does not exist, beside which others of the same stem may be made.
            threads: number of threads of torch.
            environment: variables in addition to those of this process.

        Raises:
            InputError, TrainingError, OSError, InterruptedFitError: as the function did.
            LostProcessError: if the process has ended without a result.
        """
        with storing(place):
            place.write_bytes(cloudpickle.dumps(function))
        code, said = self.run(__name__, str(place), threads, environment)
        done = place.with_suffix(".done")
        if not done.exists():
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            killed = "; the system may have killed it for memory: use fewer jobs" if code == -9 else ""
            raise LostProcessError(f"its process ended with code {code} ({last}){killed}")
        failed, found, notes = cloudpickle.loads(done.read_bytes())
        done.unlink()
        if failed:
            kind, *arguments = found
            raise kind(*arguments)
        return found, notes

    def run(
        self, module: str, order: str, threads: int, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run the function ``main`` of a module in a new process of Python, which imports from where this one does.

        Interrupts from the terminal do not reach it; see `stop`.

        Args:
            module: name of the module.
            order: a line that the function reads from standard input.
            threads: number of threads of torch.
            environment: variables in addition to those of this process.

        Returns:
            Its exit code, and what it wrote to standard error.
        """
        command = [sys.executable, "-P", "-c", f"from {module} import main; main()"]  # -P: not from the current folder
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        every = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path} | dict(environment or {})
        with tempfile.TemporaryFile("w+") as said:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": said}
            with subprocess.Popen(command, env=every, text=True, start_new_session=True, **pipes) as child:
                self._running.add(child)
                if self._stopped:
                    child.kill()
                assert child.stdin is not None
                with suppress(BrokenPipeError):  # it has ended, and said why
                    child.stdin.write(order + "\n")
                    child.stdin.flush()
                code = child.wait()  # with its standard input open
                self._running.discard(child)
                with suppress(BrokenPipeError):
                    child.stdin.close()
            said.seek(0)
            return code, said.read()

    def gather(
        self, pool: Executor, each: Sequence[Future[Any]], told: "Told", meanwhile: Callable[[], None] = lambda: None
    ) -> list[Any]:
        """The results of calls in a pool, in order; with the first error of one, all processes are ended.

        Args:
            pool: where the calls were submitted.
            each: the calls.
            told: whether a signal has come, which is passed on to all processes once.
            meanwhile: called ten times a second.

        Raises:
            InterruptedFitError: if a signal has come; if a process says how to go on, as it said.
        """
        try:
            while wait(each, 0.1, FIRST_EXCEPTION).not_done:
                meanwhile()
                if told.signal is not None:
                    self.stop(told.signal)
                    wait(each)  # each saves a checkpoint
                for one in each:
                    if one.done():
                        one.result()
            if told.signal is not None:
                raise InterruptedFitError("stopped after the last step", told.signal)
            return [one.result() for one in each]
        except BaseException as error:
            self.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            if told.signal is not None and not isinstance(error, InterruptedFitError):
                raise InterruptedFitError("stopped", told.signal) from None
            raise

    def stop(self, number: int | None = None) -> None:
        """End all processes, by a signal if a number is given, and those that start later at once."""
        self._stopped = True
        for child in list(self._running):
            if number is None:
                child.kill()
                continue
            try:
                child.send_signal(number)
            except ValueError:  # Windows has no interrupts of other processes
                child.terminate()


def main() -> None:
    """Entry point of a process of `Children.call`, which reads from standard input the path of its function."""
    path = Path(sys.stdin.readline().strip())
    threading.Thread(target=end_with_parent, daemon=True).start()
    function = cloudpickle.loads(path.read_bytes())
    path.unlink()
    failed, found = False, None
    with warnings.catch_warnings(record=True) as notes:
        try:
            found = function()
        except InterruptedFitError as error:
            failed, found = True, (InterruptedFitError, str(error), error.signal)
        except (InputError, TrainingError, OSError) as error:
            failed, found = True, (type(error), str(error))
    draft = path.with_suffix(".draft")
    draft.write_bytes(cloudpickle.dumps((failed, found, [(note.category, str(note.message)) for note in notes])))
    draft.replace(path.with_suffix(".done"))


def end_with_parent() -> None:
    """End this process once its standard input closes, as it does when the parent ends, in whatever way."""
    os.read(sys.stdin.fileno(), 1)  # past Python's buffer, whose lock would be held at the end
    os._exit(1)


def peak_memory() -> float:
    """Peak memory of this process, in MiB; NaN where the system does not report it."""
    status = Path("/proc/self/status")  # Linux, where getrusage includes the parent's memory before the start
    if status.exists():
        lines = [line.split() for line in status.read_text().splitlines()]
        return next((float(line[1]) / 2**10 for line in lines if line and line[0] == "VmHWM:"), float("nan"))
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
