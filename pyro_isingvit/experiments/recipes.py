"""What to run: the configuration of a run, and one default recipe for each data set."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from ..config import Config
from ..data import Labelled
from ..data.folders import parts_of
from ..draws import MOST_DRAWS
from ..errors import InputError
from ..files import home
from ..inference.config import FitConfig
from ..inference.mixture import MOST as MOST_MEMBERS
from ..network import ViTConfig
from ..network.vit import Side, default_patch
from ..yaml_text import parse_yaml
from .modules import ModuleConfig

LARGEST = 1_000_000
"""Size in bytes above which a file is not taken for settings."""

Number = Annotated[int, pydantic.Field(ge=1, le=1_000_000_000)]
"""A number of images."""


class PriorConfig(Config):
    """The prior of a run: `IsingSpikeSlab`, or `StructuredSpikeSlab`.

    Attributes:
        structured: whether all weights of a role at a unit of a head, a hidden unit or a patch feature share one mask;
            with ``module`` those at units of its ``unit_levels``, see `pyro_isingvit.adapt`.
        inclusion: prior inclusion probability, without the effect of neighbours.
        coupling: strength J of the Ising interaction; 0 switches it off.
        slab_scale: scale of the slab, in multiples of ``1 / sqrt(fan_in)``.
    """

    structured: bool = False
    inclusion: float = pydantic.Field(default=0.2, gt=0, lt=1)
    coupling: float = 1.0
    slab_scale: pydantic.PositiveFloat = 1.0


class GuideConfig(Config):
    """The `LikelihoodGuided` guide of a run.

    Attributes:
        estimator: estimator of the gain in log-likelihood from keeping a weight, see
            `pyro_isingvit.guides.estimators.ESTIMATORS`.
        fixed_scale: posterior scale of all weights, in place of the closed form.
        unit_scales: whether all weights that a unit reads share one posterior scale, which saves memory.
    """

    estimator: str = "squared_gradient"
    fixed_scale: pydantic.PositiveFloat | None = None
    unit_scales: bool = False


class RunConfig(Config):
    """Everything that a run depends on.

    Attributes:
        dataset: name of a data set, or path of an ``.npz`` file, see `pyro_isingvit.read`.
        data_root: folder of the data set's files.
        image_size: height and width to resize the images to; None leaves them as they are.
        background: grey level, 0 to 255, beneath transparent images of a folder.
        train, validation, test, balanced: how the images are split, see `pyro_isingvit.split`; ``"official"``
            takes the data set's own test, or validation, images.
        network: geometry of the network; with ``module`` only that of the images is used.
        module: a network of another library or from a file, in place of a `ViT`; see `ModuleConfig`.
        prior: the Ising prior.
        guide: the guide.
        select: whether input features are selected first, at temperature 1, by a `FeatureSpikeSlab`. The network is
            then fitted with what was selected and with all features, and the validation images choose.
        members: number of members of a mixture of posteriors, see `fit_mixture`; 1 for a single posterior.
        fit: how to train; its seed also draws the split and the initial weights of the network.
        draws: number of posterior draws behind each prediction; of a mixture, rounded up to as many of each member.
    """

    dataset: str = "digits"
    data_root: str | None = None
    image_size: Side | None = None
    background: int = pydantic.Field(default=255, ge=0, le=255)
    train: Number = 1000
    validation: Number | Literal["official"] | None = None
    test: Number | Literal["official"] | None = None
    balanced: bool = False
    network: ViTConfig
    module: ModuleConfig | None = None
    prior: PriorConfig = PriorConfig()
    guide: GuideConfig = GuideConfig()
    select: bool = False
    members: int = pydantic.Field(default=1, ge=1, le=MOST_MEMBERS)
    fit: FitConfig = FitConfig()
    draws: int = pydantic.Field(default=50, ge=1, le=MOST_DRAWS)

    @pydantic.model_validator(mode="after")
    def _pixels_to_select(self) -> Self:
        if self.module is not None and self.select:
            raise ValueError("select=True: of the patches of a ViT; leave it out with another network")
        if self.select and self.network.stem != "patches":
            raise ValueError(f"select=True with stem={self.network.stem!r}: only pixels of patches can be selected")
        return self

    def with_code(self, network: str | None) -> Self:
        """The configuration of a run that was made before, with the file of its network as it is given again."""
        if self.module is None:
            if network is not None:
                raise InputError(f"network={network!r}: that of the run is a ViT; leave it out")
            return self
        return self.model_copy(update={"module": self.module.given_again(network)})

    @pydantic.field_validator("test", "validation", mode="before")
    @classmethod
    def _number_or_official(cls, value: object) -> object:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if number in (None, "official") or (isinstance(number, int) and number > 0):
            return number
        raise ValueError("give a number of images, or 'official'")


_DIGITS = {"steps": 3000, "batch_size": 50, "learning_rate": 4e-3, "pilot": 0.4, "augment": "digits"}

RECIPES: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "digits": [
        (
            300,
            {
                "train": 60,
                "test": 1000,
                "members": 3,
                "network": {"patch_size": 4, "mlp_ratio": 8},
                "fit": _DIGITS | {"steps": 2600, "temperature": 5e-4},
            },
        ),
        (math.inf, {"train": 1000, "test": 500, "network": {"patch_size": 4, "mlp_ratio": 8}, "fit": _DIGITS}),
    ],
    "digits-decoys": [
        (
            math.inf,
            {
                "train": 300,
                "test": 1000,
                "validation": 300,
                "network": {"patch_size": 4, "mlp_ratio": 8},
                "fit": {"steps": 3000, "batch_size": 50, "learning_rate": 4e-3, "pilot": 0.4},
            },
        )
    ],
}
"""Settings of `RunConfig` by data set, each for up to a number of training images. docs/results has their results.

Number, members and temperature of few digits were chosen on splits with seeds from 100, see docs/first_run.md.
"""


def _by_size(
    dataset: str, few: int, many: int, network: dict[str, Any], fit_few: dict[str, Any], fit_many: dict[str, Any]
) -> None:
    """Add a recipe for up to 1,000 training images, and one for more."""
    shared = {"network": network, "prior": {"inclusion": 0.45, "coupling": 0.5}}
    RECIPES[dataset] = [
        (1000, {"train": few, "fit": fit_few} | shared),
        (math.inf, {"train": many, "fit": fit_many} | shared),
    ]


for _dataset, _augment_few, _augment_many in (
    ("mnist", "handwriting-elastic", "handwriting"),
    ("fashion-mnist", "garments", "garments"),
):
    _fit: dict[str, Any] = {"learning_rate": 2e-3, "pilot": 0.5}
    _few = {"steps": 9000, "batch_size": 20, "augment": _augment_few}
    _many = {"steps": 12000, "batch_size": 64, "augment": _augment_many}
    _by_size(_dataset, 300, 6000, {"patch_size": 7}, _fit | _few, _fit | _many)
for _dataset in ("cifar-10", "cifar-100"):
    _fit = {"learning_rate": 1e-3, "batch_size": 50, "pilot": 0.5, "augment": "photos"}
    _by_size(
        _dataset, 250, 5000, {"patch_size": 4, "dim": 64, "heads": 8}, _fit | {"steps": 2000}, _fit | {"steps": 6000}
    )


def known_recipe(dataset: str, train: int | None) -> dict[str, Any] | None:
    """The recipe of a data set for a number of training images; None for an unknown data set."""
    return next((known for most, known in RECIPES.get(dataset, []) if train is None or train <= most), None)


def recipe(dataset: str, everything: Labelled, train: int | None = None, root: str | None = None) -> dict[str, Any]:
    """The default recipe of a data set and number of training images, as nested settings of `RunConfig`.

    Args:
        dataset: name of the data set; an unknown one gets a general recipe.
        everything: images of the data set. The network takes their size, channels and classes; the general recipe also
            depends on their number.
        train: number of training images; the recipe's own if None.
        root: folder of the files. If it has parts for validation or test, see `pyro_isingvit.data.folders.parts_of`,
            these are used, and what they leave is trained on.
    """
    channels, height, width = everything.shape
    known = known_recipe(dataset, train)
    if known is None:
        patch = (default_patch(height), default_patch(width))
        own = set(parts_of(home(root))) - {"train"} if dataset == "folder" and root is not None else set()
        share = (3 + len(own)) / 5
        known = dict.fromkeys(own, "official") | {
            "train": max(1, int(share * len(everything))),
            "network": {"patch_size": patch},
            "fit": {"steps": 3000, "batch_size": 50, "learning_rate": 1e-3},
        }
        known.setdefault("test", max(1, len(everything) // 5))
    geometry = {"image_size": (height, width), "channels": channels, "classes": everything.classes}
    chosen = {} if train is None else {"train": train}
    return known | chosen | {"dataset": dataset, "network": geometry | known["network"]}


def merged(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others in their place, part by part; None leaves a setting as it is."""
    found = dict(settings)
    for name, value in others.items():
        if isinstance(value, Mapping) and isinstance(found.get(name, {}), Mapping):
            found[name] = merged(found.get(name, {}), value)
        elif value is not None:
            found[name] = value
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of `RunConfig` from a YAML or JSON file, which may leave some out; or those of a ``run.json``.

    Raises:
        InputError: if there is no such file, it holds no settings by name, or one that says what to read is of no use.
    """
    what = f"--config={str(path)!r}"
    if not home(path).is_file():
        raise InputError(f"{what}: no such file; give one with settings, such as the run.json of a run")
    if home(path).stat().st_size > LARGEST:
        raise InputError(f"{what}: larger than {LARGEST:,} bytes, so it holds no settings; give another file")
    values = parse_yaml(home(path).read_text(errors="replace"), what)
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]
    if not isinstance(values, dict):
        raise InputError(f"{what}: settings have names, as in 'train: 1000'; it holds a {type(values).__name__}")
    unknown = [name for name in values if name not in RunConfig.model_fields]
    if unknown:
        raise InputError(f"{what}: {unknown[0]!r} is no setting; there are {list(RunConfig.model_fields)}")
    _Reads(**{name: value for name, value in values.items() if name in _Reads.model_fields})
    return values


class _Reads(Config):
    """The settings that are used before a `RunConfig` is made, to read the images and find the recipe."""

    dataset: str = "digits"
    data_root: str | None = None
    image_size: Side | None = None
    background: int | None = pydantic.Field(default=None, ge=0, le=255)
    train: Number | None = None
