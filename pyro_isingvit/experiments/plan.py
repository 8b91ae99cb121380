"""Plans of studies: what is combined with what, and the runs that it comes to."""

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import pydantic
import yaml

from ..config import Config, Seed, describe
from ..errors import InputError
from .methods import Method
from .recipes import RunConfig, known_recipe

FORMAT = 5
"""Version of the result files: runs of another one are other runs."""

T = TypeVar("T")
Listed = Annotated[tuple[T, ...], pydantic.Field(min_length=1)]
"""A list that is not empty."""


class Block(Config):
    """A part of a plan: all combinations of its lists.

    Attributes:
        dataset: names, see `pyro_isingvit.read`.
        train: numbers of training images.
        method: names, or `Method` settings.
        seeds: in place of the plan's.
        set: settings of `RunConfig` in place of the recipe's, by dotted name, e.g. ``fit.steps: 1000``.
        vary: likewise, but lists of values that are tried in turn.
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
        name: of the study.
        about: what it is for.
        seeds: of every combination.
        set: settings in place of the recipes', for all blocks; a block's own go before.
        blocks: what is combined with what.
    """

    name: str
    about: str = ""
    seeds: Listed[Seed] = (0,)
    set: dict[str, Any] = pydantic.Field(default={})
    blocks: Listed[Block]

    def cells(self) -> list["Cell"]:
        """Every run of the plan, all of the first seed before the second; each once."""
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
        varied: likewise, those that the block varies.
    """

    dataset: str
    train: pydantic.PositiveInt
    method: Method
    seed: Seed
    set: dict[str, Any] = pydantic.Field(default={})
    varied: dict[str, Any] = pydantic.Field(default={})

    @property
    def key(self) -> str:
        """Name of its result file: readable, and another one if anything about the cell or its recipe differs."""
        parts = [FORMAT, self.model_dump(mode="json"), known_recipe(self.dataset, self.train)]
        settings = json.dumps(parts, sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        return f"{Path(self.dataset).stem}-{self.train}-{self.method.name}-{self.seed}-{digest}"

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
    """A plan from a YAML file, or one that ships with the package, by name.

    Raises:
        InputError: if there is none, or it is not a plan.
    """
    path = Path(name)
    shipped = shipped_plans()
    if str(name) in shipped:
        text = shipped[str(name)]
    elif path.is_file():
        text = path.read_text(errors="replace")
    else:
        raise InputError(f"plan={str(name)!r}: no such file; give one, or the name of one of {list(shipped)}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"plan={str(name)!r}: not YAML ({' '.join(str(error).split())})") from None
    try:
        return Plan.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"plan={str(name)!r}: {describe(error)}") from None


def shipped_plans() -> dict[str, str]:
    """The text of the plans that ship with the package, by name."""
    folder = resources.files(__package__) / "plans"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text() for file in files}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
