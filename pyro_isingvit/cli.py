"""The command line, `isingvit`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .data import AUGMENTATIONS, DATASETS, read
from .errors import InputError, TrainingError
from .experiments import RunConfig, evaluate, recipe, report, run
from .experiments.console import show_pruned, show_run
from .experiments.page import write_study
from .experiments.plan import read_plan, shipped_plans
from .experiments.prune import prune_run
from .experiments.study import run_cell, run_study
from .pruning.decide import DEFAULT_LEVELS

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


Dataset = Annotated[
    str,
    typer.Option(
        help="digits, mnist, fashion-mnist, cifar-10, cifar-100, folder (one of images for each class), "
        "or the path of an .npz file."
    ),
]
DataRoot = Annotated[str | None, typer.Option(help="Folder of the data set's files.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set's files if they are not there.")]
ImageSize = Annotated[int | None, typer.Option(help="Height and width to resize the images to.")]
Out = Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/DATASET")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run folder if it exists.")]
Compare = Annotated[bool, typer.Option(help="Train the deterministic network of the same recipe too.")]
Train = Annotated[int | None, typer.Option(help="Number of training images N.")]
Validation = Annotated[int | None, typer.Option(help="Number of validation images.")]
Test = Annotated[
    str | None,
    typer.Option(
        help="Number of test images, or official: the data set's own.", show_default="the recipe's, or a tenth"
    ),
]
Balanced = Annotated[bool, typer.Option("--balanced", help="Equally many training images of each class.")]
Steps = Annotated[int | None, typer.Option(help="Training steps.")]
Epochs = Annotated[int | None, typer.Option(help="Training passes over the images, in place of --steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Pilot = Annotated[float | None, typer.Option(help="Share of the steps with all masks on.")]
FineTune = Annotated[float | None, typer.Option(help="Share of the steps for the median network.")]
Temperature = Annotated[str | None, typer.Option(help="Temperature of the posterior, or auto, or sparsest.")]
TargetDensity = Annotated[float | None, typer.Option(help="Mean inclusion probability to hold.")]
Inclusion = Annotated[float | None, typer.Option(help="Prior inclusion probability.")]
CouplingStrength = Annotated[float | None, typer.Option(help="Strength of the Ising coupling.")]
Structured = Annotated[
    bool,
    typer.Option("--structured", help="One mask for each hidden unit and unit of a head: for prune."),
]
PatchSize = Annotated[int | None, typer.Option(help="Side of a patch.")]
Stem = Annotated[str | None, typer.Option(help="What tokens are computed from: pixels of patches, or convolutions.")]
Dim = Annotated[int | None, typer.Option(help="Width of the residual stream.")]
Depth = Annotated[int | None, typer.Option(help="Number of blocks.")]
Heads = Annotated[int | None, typer.Option(help="Attention heads.")]
MlpRatio = Annotated[float | None, typer.Option(help="Hidden units of a block, in multiples of dim.")]
Augmentation = Annotated[
    str | None, typer.Option(help=f"How training images are augmented: {', '.join(AUGMENTATIONS)}.")
]
Precision = Annotated[str | None, typer.Option(help="Of training: float32, or bfloat16, which may be faster.")]
Seed = Annotated[int | None, typer.Option(help="Of the split, the first weights and the training.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, or auto.")]


@app.command("fit")
def fit_command(
    dataset: Dataset = "digits",
    data_root: DataRoot = None,
    download: Download = False,
    image_size: ImageSize = None,
    out: Out = None,
    overwrite: Overwrite = False,
    compare: Compare = True,
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    balanced: Balanced = False,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    pilot: Pilot = None,
    fine_tune: FineTune = None,
    temperature: Temperature = None,
    target_density: TargetDensity = None,
    inclusion: Inclusion = None,
    coupling: CouplingStrength = None,
    structured: Structured = False,
    patch_size: PatchSize = None,
    stem: Stem = None,
    dim: Dim = None,
    depth: Depth = None,
    heads: Heads = None,
    mlp_ratio: MlpRatio = None,
    augment: Augmentation = None,
    precision: Precision = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Fit an Ising Vision Transformer, evaluate it, and write a run folder. What is not given is the recipe's."""
    out = Path("runs") / Path(dataset).stem if out is None else out
    if out.exists() and not overwrite:
        raise InputError(f"--out={str(out)!r} exists: give another folder or --overwrite")
    everything = read(dataset, data_root, download=download, image_size=image_size)
    network = {"patch_size": patch_size, "stem": stem, "dim": dim, "depth": depth, "heads": heads}
    fit: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "pilot": pilot}
    fit |= {"fine_tune": fine_tune, "temperature": temperature, "target_density": target_density, "augment": augment}
    given: dict[str, dict[str, Any]] = {
        "network": network | {"mlp_ratio": mlp_ratio},
        "fit": fit | {"precision": precision, "seed": seed, "device": device},
        "prior": {"inclusion": inclusion, "coupling": coupling, "structured": structured},
    }
    own = {"dataset": dataset, "data_root": data_root, "image_size": image_size, "train": train}
    own |= {"validation": validation, "test": test, "balanced": balanced}
    settings = recipe(dataset, everything, train)
    for part, options in given.items():
        settings[part] = settings.get(part, {}) | _given(options)
    config = RunConfig(**settings | _given(own))
    if epochs is not None:
        config = _of_epochs(config, epochs, steps)
    finished = run(config, out, everything, compare, overwrite)
    show_run(finished)
    Console().print(f"Run folder: {out}", highlight=False, soft_wrap=True)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _of_epochs(config: RunConfig, epochs: int, steps: int | None) -> RunConfig:
    """The run with so many passes over its training images."""
    if steps is not None:
        raise InputError(f"--epochs={epochs} and --steps={steps}: give one of them")
    if epochs < 1:
        raise InputError(f"--epochs={epochs}: need at least one")
    passes = epochs * config.fit.steps_per_pass(config.train)
    return config.model_copy(update={"fit": config.fit.model_copy(update={"steps": passes})})


@app.command("evaluate")
def evaluate_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that 'isingvit fit' made.")],
    data_root: Annotated[str | None, typer.Option(help="Folder of the data set's files, if it has moved.")] = None,
    draws: Annotated[int | None, typer.Option(help="Posterior draws.")] = None,
) -> None:
    """Predict the test images of a run again from its folder."""
    if draws is not None and draws < 1:
        raise InputError(f"--draws={draws}: need at least one")
    show_run(evaluate(folder, data_root, draws))


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that 'isingvit fit' made.")],
    data_root: Annotated[str | None, typer.Option(help="Folder of the data set's files, if it has moved.")] = None,
    draws: Annotated[int | None, typer.Option(help="Posterior draws behind each prediction.")] = None,
) -> None:
    """Write a page on a run: how good, how calibrated, what was kept, what is uncertain, which checks fail."""
    if draws is not None and draws < 1:
        raise InputError(f"--draws={draws}: need at least one")
    page = report(folder, data_root, draws)
    Console().print(f"Report: {page}", highlight=False, soft_wrap=True)


@app.command("prune")
def prune_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that 'isingvit fit' made.")],
    out: Annotated[Path, typer.Option(help="Folder to make for the small network.")],
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="What to keep or cut: weight, hidden, head_dim, head, block, patch, classifier_hidden. Repeatable.",
            show_default="hidden and head_dim",
        ),
    ] = None,
    density: Annotated[float | None, typer.Option(help="Share of the weights to keep, by probability.")] = None,
    threshold: Annotated[float, typer.Option(help="Keep what is alive with at least this probability.")] = 0.5,
    fine_tune: Annotated[int, typer.Option(help="Steps to train the cut network on for.")] = 0,
    draws: Annotated[
        int | None, typer.Option(help="An ensemble of so many posterior draws in place of one network.")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="torch or onnx, beside safetensors. May be repeated.")
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of the data set's files, if it has moved.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a network that was exported there.")] = False,
) -> None:
    """Cut a run's network down to what its posterior keeps, and write it for use without Pyro."""
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
        str, typer.Argument(metavar="PLAN", help="YAML file, or the name of a plan that ships: see --plans.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the results.", show_default="studies/NAME")] = None,
    data_root: Annotated[
        list[str] | None,
        typer.Option(help="Folder of the data sets' files; NAME=FOLDER for one of them. May be repeated."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    cells: Annotated[bool, typer.Option("--list", help="List the runs and whether they are done, and stop.")] = False,
    cell: Annotated[int | None, typer.Option(help="Only this run of the list: for schedulers.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write tables and pictures of what is there, and stop.")
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch data sets' files if they are not there.")] = False,
    plans: Annotated[
        bool, typer.Option("--plans", help="List the plans that ship with the package, and stop.")
    ] = False,
) -> None:
    """Run a study: every data set, size, method, setting and seed of a plan. Killed and started again, it goes on."""
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
        for number, one in enumerate(every):
            done = "done" if (out / "cells" / f"{one.key}.safetensors").exists() else "-"
            console.print(f"{number:4}  {done:4}  {one.key}  {one.setting}", highlight=False, soft_wrap=True)
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


def _roots(given: list[str]) -> dict[str, str]:
    """Folders by data set; ``""`` is for all others."""
    roots = {}
    for text in given:
        name, equals, folder = text.partition("=")
        of_one = equals and (name in DATASETS or name.endswith(".npz"))
        roots.update({name: folder} if of_one else {"": text})
    return roots


def main() -> None:
    """Entry point: a wrong input is one line on standard error and exit code 2."""
    try:
        app()
    except (InputError, TrainingError) as error:
        sys.stderr.write(f"isingvit: {error}\n")
        sys.exit(2 if isinstance(error, InputError) else 1)
