"""How the command line says that something is wrong."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def end(message: object, code: int) -> NoReturn:
    """Write a message in one line on standard error, and exit with a code."""
    _say(message)
    sys.exit(code)


@contextmanager
def warning_in_one_line() -> Iterator[None]:
    """Context in which a warning for users is a line on standard error, without the line of code that warns."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if category is UserWarning:
                _say(f"warning: {message}")
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _say(message: object) -> None:
    sys.stderr.write(f"isingvit: {' '.join(str(message).split())}\n")
