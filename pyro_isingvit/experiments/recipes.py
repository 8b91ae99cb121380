"""What to run: the configuration of a run, and one default recipe for each data set."""

from typing import Any

import pydantic

from ..config import Config
from ..data import Images, RandomAffine
from ..fit import FitConfig
from ..network import ViTConfig


class PriorConfig(Config):
    """The `IsingSpikeSlab` prior of a run.

    Attributes:
        inclusion: probability that a weight is in, without its neighbours.
        coupling: strength J of the Ising interaction; 0 switches it off.
        slab_scale: scale of the weights that are in, in multiples of ``1 / sqrt(fan_in)``.
    """

    inclusion: float = pydantic.Field(default=0.2, gt=0, lt=1)
    coupling: float = 1.0
    slab_scale: pydantic.PositiveFloat = 1.0


class RunConfig(Config):
    """Everything that a run depends on.

    Attributes:
        dataset: a name or an ``.npz`` file, see `pyro_isingvit.read`.
        data_root: folder of the data set's files.
        train, test, validation: sizes of the parts, see `pyro_isingvit.split`.
        network: geometry.
        prior: the Ising prior.
        fit: how to train; its seed also draws the split and the network's first weights.
        draws: posterior draws behind each prediction.
    """

    dataset: str = "digits"
    data_root: str | None = None
    train: pydantic.PositiveInt = 1000
    test: pydantic.PositiveInt = 500
    validation: pydantic.PositiveInt | None = None
    network: ViTConfig
    prior: PriorConfig = PriorConfig()
    fit: FitConfig = FitConfig()
    draws: pydantic.PositiveInt = 50


GENTLE = RandomAffine(degrees=10, scale=0.1, shear=10, translate=0.1)

RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "train": 1000,
        "test": 500,
        "network": {"patch_size": 4, "mlp_ratio": 8},
        "fit": {"steps": 3000, "batch_size": 50, "learning_rate": 4e-3, "pilot": 0.4, "augment": GENTLE},
    },
    "mnist": {
        "train": 300,
        "test": 6000,
        "network": {"patch_size": 7},
        "fit": {"steps": 4500, "batch_size": 20, "learning_rate": 2e-3, "augment": RandomAffine()},
    },
}
RECIPES["fashion-mnist"] = RECIPES["mnist"] | {
    "fit": RECIPES["mnist"]["fit"] | {"augment": RandomAffine(degrees=5, scale=0.1, shear=0, translate=0.1)}
}


def recipe(dataset: str, everything: Images) -> dict[str, Any]:
    """The default recipe of a data set as nested settings of `RunConfig`; a general one for an unknown set.

    Args:
        dataset: its name.
        everything: its images; their size and number decide where there is no recipe.
    """
    channels, height, width = everything.images.shape[1:]
    known = RECIPES.get(dataset)
    if known is None:
        patch = tuple(
            max(p for p in range(1, side + 1) if side % p == 0 and p <= max(1, side / 3.5)) for side in (height, width)
        )
        total = len(everything)
        known = {
            "train": max(1, total * 3 // 5),
            "test": max(1, total // 5),
            "network": {"patch_size": patch},
            "fit": {"steps": 3000, "batch_size": 50, "learning_rate": 1e-3},
        }
    geometry = {"image_size": (height, width), "channels": channels, "classes": everything.classes}
    return known | {"dataset": dataset, "network": geometry | known["network"]}
