"""Plans of studies: what is combined with what, and the runs that result."""

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

import pydantic

from ..config import Config, Seed, describe
from ..errors import InputError
from ..files import home
from ..yaml_text import parse_yaml
from .methods import Method
from .recipes import RunConfig, known_recipe

FORMAT = 8
"""Version of the result files. It is part of a run's key, so that results of other versions are not used."""

LARGEST = 1_000_000
"""Size in bytes above which a file is not taken for a plan."""

MOST_CELLS = 100_000
"""Largest number of runs of a plan that is taken for meant."""

T = TypeVar("T")
Listed = Annotated[tuple[T, ...], pydantic.Field(min_length=1)]
"""A list that is not empty."""


class Block(Config):
    """A part of a plan: all combinations of its lists.

    Attributes:
        dataset: names of data sets, see `pyro_isingvit.read`.
        train: numbers of training images.
        method: names of methods, or `Method` settings.
        seeds: seeds in place of the plan's.
        set: settings of `RunConfig` in place of the recipe's, by dotted name, e.g. ``fit.steps: 1000``.
        vary: lists of values of such settings, which are tried in turn.
    """

    dataset: Listed[str]
    train: Listed[pydantic.PositiveInt]
    method: Listed[Method]
    seeds: Listed[Seed] | None = None
    set: dict[str, Any] = pydantic.Field(default={})
    vary: dict[str, Listed[Any]] = pydantic.Field(default={})

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        each = value if isinstance(value, list) else [value]
        return [{"name": method} if isinstance(method, str) else method for method in each]

    @pydantic.field_validator("dataset", "train", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]


class Plan(Config):
    """What a study runs.

    Attributes:
        name: name of the study.
        about: what the study is for.
        seeds: seeds of every combination.
        set: settings in place of the recipes', for all blocks; a block's own settings take precedence.
        blocks: the parts of the plan.
    """

    name: Annotated[str, pydantic.Field(pattern=r"^\w[\w .+-]{0,99}$")]  # also of its folder
    about: str = ""
    seeds: Listed[Seed] = (0,)
    set: dict[str, Any] = pydantic.Field(default={})
    blocks: Listed[Block]

    @pydantic.model_validator(mode="after")
    def _not_too_many(self) -> Self:
        many = sum(
            len(block.dataset)
            * len(block.train)
            * len(block.method)
            * len(block.seeds or self.seeds)
            * math.prod(len(values) for values in block.vary.values())
            for block in self.blocks
        )
        if many > MOST_CELLS:
            raise ValueError(f"blocks: {many:,} runs are more than {MOST_CELLS:,}; make several plans of them")
        return self

    def cells(self) -> list["Cell"]:
        """Every run of the plan, each once, in the order of their seeds."""
        cells = []
        for block in self.blocks:
            grid = [[(name, value) for value in values] for name, values in block.vary.items()]
            for dataset, train, method, varied in itertools.product(
                block.dataset, block.train, block.method, itertools.product(*grid)
            ):
                for seed in block.seeds or self.seeds:
                    cells.append(
                        Cell(
                            dataset=dataset,
                            train=train,
                            method=method,
                            seed=seed,
                            set=self.set | block.set,
                            varied=dict(varied),
                        )
                    )
        unique = {cell.key: cell for cell in cells}
        return sorted(unique.values(), key=lambda cell: cell.seed)


class Cell(Config):
    """One run of a study.

    Attributes:
        dataset, train, method, seed: what is run.
        set: settings in place of the recipe's, by dotted name.
        varied: the same, for the settings that the block varies.
    """

    dataset: str
    train: pydantic.PositiveInt
    method: Method
    seed: Seed
    set: dict[str, Any] = pydantic.Field(default={})
    varied: dict[str, Any] = pydantic.Field(default={})

    @property
    def key(self) -> str:
        """Readable name of its result file, which differs if anything about the cell or its recipe differs."""
        parts = [FORMAT, self.model_dump(mode="json"), known_recipe(self.dataset, self.train)]
        settings = json.dumps(parts, sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        return f"{_safe(Path(self.dataset).stem)}-{self.train}-{self.method.name}-{self.seed}-{digest}"

    @pydantic.model_validator(mode="after")
    def _leaves_the_cell_alone(self) -> Self:
        own = {"dataset", "data_root", "train", "fit.seed"} & {*self.set, *self.varied}
        if own:
            raise ValueError(f"set or vary has {sorted(own)}: dataset, train, seeds and --data-root say that")
        groups = {"network", "prior", "guide", "fit"} & {*self.set, *self.varied}
        if groups:
            raise ValueError(f"set or vary has {sorted(groups)}: name one setting each, e.g. 'fit.steps: 1000'")
        return self

    @property
    def image_size(self) -> int | None:
        """Height and width to resize to."""
        return (self.set | self.varied).get("image_size")

    @property
    def reads(self) -> tuple[str, int | None, int]:
        """Data set, size to resize to, and grey level beneath transparent images: what its images depend on."""
        chosen = self.set | self.varied
        return self.dataset, self.image_size, chosen.get("background", 255)

    @property
    def setting(self) -> str:
        """What is varied, as text."""
        return ", ".join(f"{name.rpartition('.')[-1]}={_short(value)}" for name, value in self.varied.items())

    def run_config(self, settings: Mapping[str, Any], data_root: str | None) -> RunConfig:
        """The cell's configuration on top of a recipe's settings."""
        nested: dict[str, Any] = copy.deepcopy(dict(settings))
        for name, value in {**self.set, **self.varied, "fit.seed": self.seed, "data_root": data_root}.items():
            *parents, leaf = name.split(".")
            inner = nested
            for parent in parents:
                inner = inner.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise InputError(f"set={name!r}: {parent!r} is no group of settings; see RunConfig")
            inner[leaf] = copy.deepcopy(value)
        return RunConfig(**nested)


def read_plan(name: str | Path) -> Plan:
    """Read a plan from a YAML file, or one that ships with the package by its name.

    Raises:
        InputError: if there is no such plan, or it is not valid.
    """
    path = home(name)
    shipped = shipped_plans()
    if str(name) in shipped:
        text = shipped[str(name)]
    elif path.is_file():
        if path.stat().st_size > LARGEST:
            raise InputError(f"plan={str(name)!r}: larger than {LARGEST:,} bytes, so it is no plan; give another file")
        text = path.read_text(errors="replace")
    else:
        raise InputError(f"plan={str(name)!r}: no such file; give one, or the name of one of {list(shipped)}")
    values = parse_yaml(text, f"plan={str(name)!r}")
    if not isinstance(values, dict):
        raise InputError(f"plan={str(name)!r}: holds no settings; give name and blocks at least")
    try:
        plan = Plan.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"plan={str(name)!r}: {describe(error)}") from None
    for setting in [*plan.set, *(setting for block in plan.blocks for setting in [*block.set, *block.vary])]:
        if not _is_setting(setting):
            raise InputError(f"plan={str(name)!r}: set or vary has {setting!r}, and there is none; see RunConfig")
    return plan


def _is_setting(name: str) -> bool:
    """Whether `RunConfig` has a setting of this dotted name; what is no group of settings is not looked into."""
    group: type[pydantic.BaseModel] = RunConfig
    for part in name.split("."):
        if part not in group.model_fields:
            return False
        annotation = group.model_fields[part].annotation
        inner = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        groups = [kind for kind in inner if issubclass(kind, pydantic.BaseModel)]
        if not groups:
            return True
        group = groups[0]
    return True


def shipped_plans() -> dict[str, str]:
    """The texts of the plans that ship with the package, by name."""
    folder = resources.files(__package__) / "plans"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def _safe(name: str) -> str:
    """The start of a name, with what may not be in that of a file replaced."""
    return re.sub(r"[^\w.+-]", "_", name)[:40]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
