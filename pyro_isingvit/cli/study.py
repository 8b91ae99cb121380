"""``isingvit study``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import InputError

if TYPE_CHECKING:
    from ..experiments.plan import Cell


def study_command(
    plan: Annotated[
        str,
        typer.Argument(
            metavar="PLAN", help="YAML file, or the name of a plan that ships with the package (see --plans)."
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the results.", show_default="studies/NAME")] = None,
    data_root: Annotated[
        list[str] | None,
        typer.Option(help="Folder with the files of the data sets, or NAME=FOLDER for one of them. May be repeated."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Number of runs at a time.")] = 1,
    cells: Annotated[bool, typer.Option("--list", help="List the runs and whether they are done, and exit.")] = False,
    cell: Annotated[int | None, typer.Option(help="Only the run with this number in the list; for schedulers.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write tables and pictures of the results so far, and exit.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Download files of the data sets that are missing.")
    ] = False,
    plans: Annotated[
        bool, typer.Option("--plans", help="List the plans that ship with the package, and exit.")
    ] = False,
) -> None:
    """Run a study: every data set, size, method, setting and seed of a plan. If interrupted, it can be continued."""
    from ..experiments.page import write_study
    from ..experiments.plan import read_plan, shipped_plans
    from ..experiments.study import run_cell, run_study

    console = Console()
    if plans:
        for name in shipped_plans():
            console.print(f"{name}: {' '.join(read_plan(name).about.split())}", highlight=False, soft_wrap=True)
        return
    if not plan:
        raise InputError(f"PLAN='': give a YAML file, or the name of a plan that ships: {list(shipped_plans())}")
    study = read_plan(plan)
    out = Path("studies") / study.name if out is None else out
    roots = _roots(data_root or [])
    every = study.cells()
    if cell is not None and not 0 <= cell < len(every):
        raise InputError(f"--cell={cell}: the plan has runs 0 to {len(every) - 1}")
    modes = [name for name, given in (("--list", cells), ("--report", report), ("--cell", cell is not None)) if given]
    if len(modes) > 1 or (jobs != 1 and modes):
        raise InputError(f"{' and '.join(modes)}{f' with --jobs={jobs}' if jobs != 1 else ''}: give one of them")
    if cells:
        _list_cells(every, out)
    elif report:
        console.print(f"Report: {write_study(study, out, out / 'report')}", highlight=False, soft_wrap=True)
    elif cell is not None:
        path = run_cell(every[cell], out, roots, download, progress=True)
        console.print(f"Result: {path}", highlight=False, soft_wrap=True)
    else:
        failures = run_study(study, out, roots, jobs, download)
        for key, error in failures.items():
            sys.stderr.write(f"isingvit: {key}: {error}\n")
        console.print(
            f"{len(every) - len(failures)} of {len(every)} runs are in {out}; --report makes the tables",
            highlight=False,
            soft_wrap=True,
        )
        if failures:
            sys.exit(1)


def _list_cells(cells: list["Cell"], out: Path) -> None:
    for number, cell in enumerate(cells):
        done = "done" if (out / "cells" / f"{cell.key}.safetensors").exists() else "-"
        Console().print(f"{number:4}  {done:4}  {cell.key}  {cell.setting}", highlight=False, soft_wrap=True)


def _roots(given: list[str]) -> dict[str, str]:
    """Folders by the name of the data set; the key ``""`` is for all others."""
    from ..data import DATASETS

    roots = {}
    for text in given:
        name, equals, folder = text.partition("=")
        of_one = equals and (name in DATASETS or name.endswith(".npz"))
        roots.update({name: folder} if of_one else {"": text})
    return roots
