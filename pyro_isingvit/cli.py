"""Bayesian sparsification of Vision Transformers, on the command line."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from . import cli_options as option
from .data import DATASETS, read
from .draws import check_draws
from .errors import InputError, InterruptedFitError, TrainingError
from .experiments import RunConfig, evaluate, recipe, report, run
from .experiments.console import show_pruned, show_run
from .experiments.page import write_study
from .experiments.place import check_free, is_unfinished, resolved
from .experiments.plan import Cell, read_plan, shipped_plans
from .experiments.prune import prune_run
from .experiments.recipes import merged, read_settings
from .experiments.runs import Run, resume_run
from .experiments.study import run_cell, run_study
from .pruning.decide import DEFAULT_LEVELS

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command("fit")
def fit_command(
    context: typer.Context,
    config_file: option.ConfigFile = None,
    dataset: option.Dataset = "digits",
    data_root: option.DataRoot = None,
    download: option.Download = False,
    image_size: option.ImageSize = None,
    background: option.Background = None,
    out: option.Out = None,
    overwrite: option.Overwrite = False,
    resume: option.Resume = None,
    checkpoint_every: option.CheckpointEvery = 60.0,
    compare: option.Compare = True,
    members: option.Members = None,
    train: option.Train = None,
    validation: option.Validation = None,
    test: option.Test = None,
    balanced: option.Balanced = False,
    steps: option.Steps = None,
    epochs: option.Epochs = None,
    batch_size: option.BatchSize = None,
    learning_rate: option.LearningRate = None,
    pilot: option.Pilot = None,
    fine_tune: option.FineTune = None,
    temperature: option.Temperature = None,
    target_density: option.TargetDensity = None,
    inclusion: option.Inclusion = None,
    coupling: option.CouplingStrength = None,
    structured: option.Structured = False,
    select: option.Select = False,
    network: option.Network = None,
    pretrained: option.Pretrained = False,
    around: option.Around = None,
    patch_size: option.PatchSize = None,
    stem: option.Stem = None,
    dim: option.Dim = None,
    depth: option.Depth = None,
    heads: option.Heads = None,
    mlp_ratio: option.MlpRatio = None,
    augment: option.Augmentation = None,
    precision: option.Precision = None,
    seed: option.Seed = None,
    device: option.Device = None,
    devices: option.Devices = 1,
) -> None:
    """Fit an Ising Vision Transformer, evaluate it, and write a run folder. Defaults are from the data set's recipe."""
    if resume is not None:
        _only_resume(context)
        _finish(partial(resume_run, resume, data_root, interval=checkpoint_every, devices=devices), resume)
        return
    written = {} if config_file is None else read_settings(config_file)
    reads: dict[str, Any] = {
        "dataset": dataset,
        "data_root": data_root,
        "image_size": image_size,
        "background": background,
        "train": train,
    }
    reads |= {name: written[name] for name in reads if name in written and name not in _on_command_line(context)}
    dataset, data_root, train = reads["dataset"], reads["data_root"], reads["train"]
    out = Path("runs") / Path(dataset).stem if out is None else out
    _check_out(out, overwrite)
    grey = 255 if reads["background"] is None else reads["background"]
    everything = read(dataset, data_root, "train", download, reads["image_size"], grey)
    geometry = {"patch_size": patch_size, "stem": stem, "dim": dim, "depth": depth, "heads": heads}
    if network is None and (pretrained or around is not None):
        raise InputError(
            "--pretrained and --around are of other networks: give --network, e.g. timm:vit_tiny_patch16_224"
        )
    fit: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "pilot": pilot}
    fit |= {"fine_tune": fine_tune, "temperature": temperature, "target_density": target_density, "augment": augment}
    given: dict[str, Any] = {
        "network": geometry | {"mlp_ratio": mlp_ratio},
        "module": {"name": network, "pretrained": pretrained or None, "around": around},
        "fit": fit | {"precision": precision, "seed": seed, "device": device},
        "prior": {"inclusion": inclusion, "coupling": coupling, "structured": structured or None},
        **reads,
        **{"validation": validation, "test": test, "members": members},
        **{"balanced": balanced or None, "select": select or None},
    }
    if network is None:
        given.pop("module")
    settings = merged(merged(recipe(dataset, everything, train, data_root), written), given)
    config = RunConfig(**settings)
    if epochs is not None:
        config = _of_epochs(config, epochs, steps)
    start = partial(run, config, out, everything, compare, overwrite, interval=checkpoint_every, devices=devices)
    _finish(start, out)


def _finish(start: Callable[[], Run], out: Path) -> None:
    try:
        finished = start()
    except InterruptedFitError as error:  # here, as Typer has a message of its own for interrupts
        _end(error, 128 + error.signal)
    show_run(finished)
    Console().print(f"Run folder: {out}", highlight=False, soft_wrap=True)


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse a place before anything is read, in words of the command line."""
    place = resolved(out)
    if place.exists() and not overwrite:
        if is_unfinished(place):
            raise InputError(
                f"--out={str(out)!r} has an unfinished run: --resume {out} goes on, --overwrite starts again"
            )
        raise InputError(f"--out={str(out)!r} exists: give another folder or --overwrite")
    check_free(place, overwrite)


def _on_command_line(context: typer.Context) -> list[str]:
    """The options that were given."""
    sources = {name: getattr(context.get_parameter_source(name), "name", None) for name in context.params}
    return [name for name, source in sources.items() if source == "COMMANDLINE"]


def _only_resume(context: typer.Context) -> None:
    """Refuse options beside ``--resume`` that would make it another run."""
    given = [
        name for name in _on_command_line(context) if name not in ("resume", "data_root", "checkpoint_every", "devices")
    ]
    if given:
        raise InputError(
            f"--{given[0].removesuffix('_file').replace('_', '-')} with --resume: a run goes on with the "
            "settings that it has; leave it out"
        )


def _of_epochs(config: RunConfig, epochs: int, steps: int | None) -> RunConfig:
    """The configuration with as many steps as make ``epochs`` passes over its training images."""
    if steps is not None:
        raise InputError(f"--epochs={epochs} and --steps={steps}: give one of them")
    if epochs < 1:
        raise InputError(f"--epochs={epochs}: need at least one")
    passes = epochs * config.fit.steps_per_pass(config.train)
    return config.model_copy(update={"fit": config.fit.model_copy(update={"steps": passes})})


@app.command("evaluate")
def evaluate_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that 'isingvit fit' made.")],
    data_root: Annotated[
        str | None, typer.Option(help="Folder with the files of the data set, if it has moved.")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Number of posterior draws.")] = None,
) -> None:
    """Evaluate a run again on its test images, from its folder."""
    if draws is not None:
        check_draws(draws)
    show_run(evaluate(folder, data_root, draws))


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that 'isingvit fit' made.")],
    data_root: Annotated[
        str | None, typer.Option(help="Folder with the files of the data set, if it has moved.")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Number of posterior draws for each prediction.")] = None,
) -> None:
    """Write a page on a run: accuracy, calibration, what was kept, what is uncertain, and which checks fail."""
    if draws is not None:
        check_draws(draws)
    page = report(folder, data_root, draws)
    Console().print(f"Report: {page}", highlight=False, soft_wrap=True)


@app.command("prune")
def prune_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that 'isingvit fit' made.")],
    out: Annotated[Path, typer.Option(help="Folder to write the small network to.")],
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="What to decide on: weight, hidden, head_dim, head, block, patch, classifier_hidden. Repeatable.",
            show_default="hidden and head_dim",
        ),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the weights to keep, the most probable first.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Keep units or weights that are alive with at least this probability.")
    ] = 0.5,
    fine_tune: Annotated[int, typer.Option(help="Steps of fine-tuning after the cut.")] = 0,
    draws: Annotated[
        int | None, typer.Option(help="Export an ensemble of this many posterior draws instead of one network.")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="torch or onnx, in addition to safetensors. May be repeated.")
    ] = None,
    data_root: Annotated[
        str | None, typer.Option(help="Folder with the files of the data set, if it has moved.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a network that was exported there before.")
    ] = False,
) -> None:
    """Cut the network of a run down to what its posterior keeps, and export it for use without Pyro."""
    pruned = prune_run(
        folder,
        out,
        level=level or DEFAULT_LEVELS,
        threshold=threshold,
        density=density,
        fine_tune_steps=fine_tune,
        draws=draws,
        formats=formats or (),
        data_root=data_root,
        overwrite=overwrite,
    )
    show_pruned(pruned)
    Console().print(f"Small network: {out}", highlight=False, soft_wrap=True)


@app.command("study")
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


def _list_cells(cells: list[Cell], out: Path) -> None:
    for number, cell in enumerate(cells):
        done = "done" if (out / "cells" / f"{cell.key}.safetensors").exists() else "-"
        Console().print(f"{number:4}  {done:4}  {cell.key}  {cell.setting}", highlight=False, soft_wrap=True)


def _roots(given: list[str]) -> dict[str, str]:
    """Folders by the name of the data set; the key ``""`` is for all others."""
    roots = {}
    for text in given:
        name, equals, folder = text.partition("=")
        of_one = equals and (name in DATASETS or name.endswith(".npz"))
        roots.update({name: folder} if of_one else {"": text})
    return roots


def main() -> None:
    """Entry point. An error is one line on standard error.

    The exit code is 2 for wrong input, 1 for what went wrong otherwise, and 128 and the signal's number if a signal has
    stopped it.
    """
    try:
        app()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on; what was to be written into files is there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OverflowError) as error:
        _end(error, 2)
    except (MemoryError, RecursionError) as error:
        _end(f"not enough memory for this ({error or type(error).__name__}); make it smaller", 2)
    except (TrainingError, OSError) as error:
        _end(error, 1)


def _end(message: object, code: int) -> NoReturn:
    sys.stderr.write(f"isingvit: {' '.join(str(message).split())}\n")
    sys.exit(code)
