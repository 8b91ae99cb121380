"""The exceptions of this library."""


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


def kind_of(value: object) -> str:
    """Name of a value's class for messages; of a class that was given in place of an instance, its own name."""
    return value.__name__ if isinstance(value, type) else type(value).__name__
