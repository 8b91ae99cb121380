"""A fit on several devices of this machine: a process for each, which this one starts, listens to and ends."""

import os
import queue
import secrets
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Client
from multiprocessing.connection import Listener as Socket
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError
from ..processes import Children, LostProcessError, Note
from .events import Event, Listener
from .result import FitResult
from .signals import listening


def on_devices(run: Callable[..., FitResult], devices: int, listeners: Sequence[Listener], saves: bool) -> FitResult:
    """Run a fit in a process for each device; returns the result of the first.

    Args:
        run: a function that fits; the first process gives it ``listeners=``.
        devices: number of processes.
        listeners: called here with the events of the first process.
        saves: whether the fit saves checkpoints, so that signals are passed on to it.

    Raises:
        TrainingError: if a process has ended without a result; the others are ended.
        InputError, TrainingError, OSError, InterruptedFitError: as the fit did.
    """
    children, key = Children(), secrets.token_bytes(16)
    threads = max(1, torch.get_num_threads() // devices)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    with (
        tempfile.TemporaryDirectory(prefix="isingvit-", ignore_cleanup_errors=True) as scratch,
        Socket(authkey=key) as door,
        listening(saves) as told,
        ThreadPoolExecutor(devices) as pool,
    ):
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(door, events), daemon=True).start()

        def tell() -> None:
            with suppress(queue.Empty):
                while True:
                    event = events.get_nowait()
                    for listener in listeners:
                        listener(event)

        one = partial(_one, run, door.address, key)
        each = [
            pool.submit(
                children.call, one, Path(scratch, str(k)), threads, place | {"LOCAL_RANK": str(k), "RANK": str(k)}
            )
            for k in range(devices)
        ]
        try:
            done: list[tuple[FitResult, list[Note]]] = children.gather(pool, each, told, tell)
        except LostProcessError as error:
            raise TrainingError(
                f"device {_lost(each)} of {devices}: {error}; the others were ended too"
                + ("; go on from the last checkpoint, with resume=True" if saves else "")
            ) from None
        tell()
    result, notes = done[0]
    for kind, note in notes:
        warnings.warn(note, kind, stacklevel=4)
    return result


def _one(run: Callable[..., FitResult], address: Any, key: bytes) -> FitResult | None:
    """The part of one process."""
    if os.environ["LOCAL_RANK"] != "0":
        run()
        found = None
    else:
        with Client(address, authkey=key) as connection:
            found = run(listeners=[connection.send])
    torch.distributed.destroy_process_group()
    return found


def _listen(door: Socket, events: "queue.SimpleQueue[Event]") -> None:
    """Put the events of the first process in a queue, until it ends."""
    with suppress(OSError, EOFError), door.accept() as connection:
        while True:
            events.put(connection.recv())


def _lost(each: Sequence[Any]) -> int:
    """Number of the first process that was lost."""
    return next(k for k, one in enumerate(each) if one.done() and isinstance(one.exception(), LostProcessError))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
