"""Bayesian sparsification of Vision Transformers, on the command line.

Commands import what they need when they run, so that help and completion do not wait for torch.
"""

import os
import sys

import typer

from ..errors import InputError, TrainingError
from .ending import end, warning_in_one_line
from .fit import fit_command
from .hub import pull_command, push_command
from .predict import predict_command
from .prune import prune_command
from .read import evaluate_command, report_command
from .runs import runs_command
from .study import study_command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Bayesian sparsification of Vision Transformers, on the command line.",
)
app.command("fit")(fit_command)
app.command("predict")(predict_command)
app.command("evaluate")(evaluate_command)
app.command("report")(report_command)
app.command("prune")(prune_command)
app.command("runs")(runs_command)
app.command("study")(study_command)
app.command("push")(push_command)
app.command("pull")(pull_command)


def main() -> None:
    """Entry point. An error is one line on standard error.

    The exit code is 2 for wrong input, 1 for what went wrong otherwise, and 128 and the signal's number if a signal has
    stopped it.
    """
    try:
        with warning_in_one_line():
            app()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on; what was to be written into files is there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OverflowError) as error:
        end(error, 2)
    except (MemoryError, RecursionError) as error:
        end(f"not enough memory for this ({error or type(error).__name__}); make it smaller", 2)
    except (TrainingError, OSError) as error:
        end(error, 1)
