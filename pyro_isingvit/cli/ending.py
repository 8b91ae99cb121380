"""How the command line ends when something is wrong."""

import sys
from typing import NoReturn


def end(message: object, code: int) -> NoReturn:
    """Write a message in one line on standard error, and exit with a code."""
    sys.stderr.write(f"isingvit: {' '.join(str(message).split())}\n")
    sys.exit(code)
