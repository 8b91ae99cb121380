"""``isingvit runs``."""

from pathlib import Path
from typing import Annotated

import typer


def runs_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...", help="Folder that has run folders; or runs to compare.", show_default="runs"
        ),
    ] = None,
) -> None:
    """List the runs in a folder, or compare some: which settings differ, and their scores side by side."""
    from ..experiments.listing import find_runs, read_run
    from ..experiments.overview import show_comparison, show_runs

    if folders is not None and len(folders) > 1:
        show_comparison([read_run(folder) for folder in folders])
    else:
        top = folders[0] if folders else Path("runs")
        show_runs(top, *find_runs(top))
