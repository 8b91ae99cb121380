"""Networks of other libraries, or from a file, by name, with the geometry of a run's images."""

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from ..adapted import Adapted, adapt
from ..config import Config
from ..errors import InputError, kind_of
from ..files import file_digest, home
from ..network import ViTConfig

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels of ImageNet, which most pretrained networks are standardised by."""


class ModuleConfig(Config):
    """A network that is adapted, in place of a `ViT`; see `adapt`.

    Attributes:
        name: ``timm:NAME``, ``torchvision:NAME`` or ``transformers:NAME`` of these libraries (of transformers a class,
            or with ``pretrained`` a checkpoint), or ``FILE.py:FUNCTION``, a function that makes a module and takes any
            of ``classes``, ``channels`` and ``image_size`` (height and width), and returns logits (batch, classes) of
            images that are standardised by a mean and a standard deviation of .5.
        digest: SHA-256 of the file, which `run` records; a file with another one is refused.
        pretrained: whether the library loads weights, which it may download.
        around: what dropped weights are: ``"zero"``, or what they were.
        include, exclude: patterns of names of parameters that are and are not to be masked, see `adapt`: with include
            ``["blocks.11.*", "head"]`` the last block and the head.
        train: whether what is not masked is learned as well (``"all"``), or frozen (``"masked"``).
    """

    name: str
    digest: str = ""
    pretrained: bool = False
    around: Literal["zero", "pretrained"] = "zero"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    train: Literal["all", "masked"] = "all"

    @property
    def file(self) -> Path | None:
        """The file of the function that makes the module; None for one of a library."""
        path, _, _ = self.name.rpartition(":")
        return home(path) if path.endswith(".py") else None

    def recorded(self) -> Self:
        """The same with the digest of its file, if it is of one."""
        if self.digest or self.file is None or not self.file.is_file():
            return self
        return self.model_copy(update={"digest": file_digest(self.file)})

    def given_again(self, name: str | None) -> Self:
        """The same, of the file that is given again, since no code is run because a folder names it.

        Raises:
            InputError: if it is of a file and none is given, or the other way round.
        """
        if self.file is None:
            if name is not None:
                raise InputError(f"network={name!r}: that of the run, {self.name!r}, is of no file; leave it out")
            return self
        if name is None:
            raise InputError(
                f"network=None: that of the run is code, {self.name!r}, and no code is run because a folder names it; "
                f"give it again, network={self.name!r} (--network)"
            )
        return self.model_copy(update={"name": name})


def make_module(config: ModuleConfig, geometry: ViTConfig) -> Adapted:
    """The network that a configuration names, adapted to images of a geometry.

    Raises:
        InputError: if there is no such network, its library is not installed, or it cannot be adapted.
    """
    kind, _, name = config.name.rpartition(":")
    make = MAKERS.get(kind)
    if not name or (make is None and config.file is None):
        raise InputError(f"network={config.name!r}: give one of {[f'{k}:NAME' for k in MAKERS]}, or FILE.py:FUNCTION")
    if config.file is not None and config.pretrained:
        raise InputError(f"pretrained=True: of libraries, and network={config.name!r} is of a file; leave it out")
    module, standard = make(name, config, geometry) if make is not None else _from_file(kind, name, config, geometry)
    if not isinstance(module, nn.Module):
        raise InputError(f"network={config.name!r}: made {kind_of(module)}, not a torch module")
    _set_dropout(module, geometry.dropout, config)
    example = torch.rand(1, geometry.channels, *geometry.image_size, generator=torch.Generator().manual_seed(0))
    options = config.model_dump(include={"around", "include", "exclude", "train"})
    return adapt(module, example, mean=standard[0], std=standard[1], **options)


def _set_dropout(module: nn.Module, rate: float, config: ModuleConfig) -> None:
    """Set the rate of all dropout layers, if one is given."""
    layers = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    if rate and not layers:
        raise InputError(f"network={config.name!r}: has no dropout layer, and dropout={rate}; leave dropout out")
    for layer in layers:
        layer.p = rate or layer.p


Standard = tuple[tuple[float, ...], tuple[float, ...]]

HALF: Standard = ((0.5,), (0.5,))


def _from_timm(name: str, config: ModuleConfig, geometry: ViTConfig) -> tuple[nn.Module, Standard]:
    timm = _library("timm", config)
    if not timm.is_model(name.split(".")[0]):
        raise InputError(f"network={config.name!r}: timm has no such model; timm.list_models() names them")
    options = {"pretrained": config.pretrained, "num_classes": geometry.classes, "in_chans": geometry.channels}
    try:
        module = timm.create_model(name, img_size=geometry.image_size, **options)
    except TypeError:  # a network of any size
        module = timm.create_model(name, **options)
    known = getattr(module, "default_cfg", {})
    if not config.pretrained or len(known.get("mean", ())) != geometry.channels:
        return module, HALF
    return module, (tuple(known["mean"]), tuple(known["std"]))


def _from_torchvision(name: str, config: ModuleConfig, geometry: ViTConfig) -> tuple[nn.Module, Standard]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise InputError(f"network={config.name!r}: torchvision has no such model of classes")
    options: dict[str, Any] = {"image_size": geometry.image_size[0]} if name.startswith("vit_") else {}
    if config.pretrained:
        module = models.get_model(name, weights="DEFAULT", **options)
        _replace_head(module, geometry.classes)
    else:
        module = models.get_model(name, weights=None, num_classes=geometry.classes, **options)
    return module, IMAGENET  # three channels, of which a grey image has three times the same


def _from_transformers(name: str, config: ModuleConfig, geometry: ViTConfig) -> tuple[nn.Module, Standard]:
    transformers = _library("transformers", config)
    if config.pretrained:
        options = {"num_labels": geometry.classes, "ignore_mismatched_sizes": True}
        return transformers.AutoModelForImageClassification.from_pretrained(name, **options), IMAGENET
    cls = getattr(transformers, name, None)
    if cls is None or not hasattr(cls, "config_class"):
        raise InputError(f"network={config.name!r}: transformers has no such class, e.g. ViTForImageClassification")
    settings = {"num_channels": geometry.channels, "num_labels": geometry.classes, "image_size": geometry.image_size[0]}
    return cls(cls.config_class(**settings)), HALF


def _from_file(path: str, name: str, config: ModuleConfig, geometry: ViTConfig) -> tuple[nn.Module, Standard]:
    file = home(path)
    if not file.is_file():
        raise InputError(f"network={config.name!r}: no file {path!r}; give FILE.py:FUNCTION")
    if config.digest and file_digest(file) != config.digest:
        raise InputError(f"network={config.name!r}: {path!r} is not as it was in the fit; restore it, or fit again")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    make = getattr(found, name, None)
    if not callable(make):
        raise InputError(f"network={config.name!r}: {path!r} has no function {name!r}")
    known = {"classes": geometry.classes, "channels": geometry.channels, "image_size": geometry.image_size}
    taken = inspect.signature(make).parameters
    needed = [
        p.name for p in taken.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    strange = [name for name in needed if name not in known]
    if strange:
        raise InputError(
            f"network={config.name!r}: {name} takes {strange[0]!r} without a default; it may take {list(known)} alone"
        )
    return make(**{key: value for key, value in known.items() if key in taken}), HALF


def _library(name: str, config: ModuleConfig) -> Any:
    if importlib.util.find_spec(name) is None:
        raise InputError(f"network={config.name!r}: needs {name}; pip install 'pyro-isingvit[{name}]'")
    return importlib.import_module(name)


def _replace_head(module: nn.Module, classes: int) -> None:
    """Put a new last layer, of so many outputs, in the place of the last linear one."""
    name, last = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, nn.Linear(last.in_features, classes))


Maker = Callable[[str, ModuleConfig, ViTConfig], tuple[nn.Module, Standard]]

MAKERS: Mapping[str, Maker] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "transformers": _from_transformers,
}
"""Functions that make a network by name, by library."""
