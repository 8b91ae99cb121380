"""Processes of a study or of a mixture, none of which outlives it."""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


class Children:
    """Processes that run. Each ends when this one does, see `end_with_parent`."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, module: str, order: str, threads: int) -> tuple[int, str]:
        """Run the function ``main`` of a module in a new process of Python, which imports from where this one does.

        Interrupts from the terminal do not reach it; see `stop`.

        Args:
            module: name of the module.
            order: a line that the function reads from standard input.
            threads: number of threads of torch.

        Returns:
            Its exit code, and what it wrote to standard error.
        """
        command = [sys.executable, "-P", "-c", f"from {module} import main; main()"]  # -P: not from the current folder
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        with tempfile.TemporaryFile("w+") as said:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": said}
            with subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes) as child:
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

    def stop(self, number: int | None = None) -> None:
        """End all processes, by a signal if a number is given, and those that start later at once."""
        self._stopped = True
        for child in list(self._running):
            if number is None:
                child.kill()
            else:
                child.send_signal(number)


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
