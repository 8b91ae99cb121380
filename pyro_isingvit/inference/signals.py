"""Signals that tell a fit to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Told:
    """Which signal has told the process to stop, see `listening`."""

    signal: int | None = None


@contextmanager
def listening(wanted: bool) -> Iterator[Told]:
    """Context in which the first interrupt (Ctrl-C) or SIGTERM is noted instead of obeyed; the second is obeyed.

    This is possible in the main thread alone, and signals that the program handles itself are left to it.
    """
    told = Told()
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        told.signal = number
        for one, handler in before.items():
            signal.signal(one, handler)

    if wanted and threading.current_thread() is threading.main_thread():
        for one in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(one) in (signal.SIG_DFL, signal.default_int_handler):
                before[one] = signal.signal(one, note)
    try:
        yield told
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
