"""Commands that read a run folder."""

from typing import Annotated

import typer
from rich.console import Console

from . import options as option


def evaluate_command(
    folder: option.RunFolder,
    data_root: option.MovedRoot = None,
    draws: Annotated[int | None, typer.Option(help="Number of posterior draws.")] = None,
    network: option.RunNetwork = None,
) -> None:
    """Evaluate a run again on its test images, from its folder."""
    from ..draws import check_draws
    from ..experiments import evaluate
    from ..experiments.console import show_run

    if draws is not None:
        check_draws(draws)
    show_run(evaluate(folder, data_root, draws, network))


def report_command(
    folder: option.RunFolder,
    data_root: option.MovedRoot = None,
    draws: Annotated[int | None, typer.Option(help="Number of posterior draws for each prediction.")] = None,
    network: option.RunNetwork = None,
) -> None:
    """Write a page on a run: accuracy, calibration, what was kept, what is uncertain, and which checks fail."""
    from ..draws import check_draws
    from ..experiments import report

    if draws is not None:
        check_draws(draws)
    page = report(folder, data_root, draws, network=network)
    Console().print(f"Report: {page}", highlight=False, soft_wrap=True)
