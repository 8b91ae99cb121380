"""The exceptions of this library, and checks of single values that raise them."""

import math
from numbers import Integral, Real


class InputError(ValueError):
    """A value handed to a public function cannot be used.

    The message is one line: the argument, the value it had, and what to do instead. The command line
    prints it and exits with code 2.
    """


class TrainingError(RuntimeError):
    """Training diverged; the message says where and what to change."""


class StorageError(OSError):
    """A file or folder could not be written; the message says which, why, and where the results are so far."""


class InterruptedFitError(KeyboardInterrupt):
    """A fit was told to stop, by Ctrl-C or SIGTERM; the message says where its last checkpoint is.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def check_positive(name: str, value: object, example: str) -> None:
    """Check that a value is a positive, finite number.

    Raises:
        InputError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise InputError(f"{name}={value!r}: must be a positive number, e.g. {example}")


def check_fraction(name: str, value: object, example: str) -> None:
    """Check that a value is a number strictly between 0 and 1.

    Raises:
        InputError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise InputError(f"{name}={value!r}: must lie strictly between 0 and 1, e.g. {example}")


def check_count(name: str, value: object, most: int) -> None:
    """Check that a value is an integer from 1 to ``most``.

    Raises:
        InputError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= most:
        raise InputError(f"{name}={value!r}: must be an integer from 1 to {most:,}")


def kind_of(value: object) -> str:
    """Name of a value's class for messages; of a class that was given in place of an instance, its own name."""
    return value.__name__ if isinstance(value, type) else type(value).__name__
