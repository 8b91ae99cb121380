"""Descriptions of priors, guides and estimators: the class, and the arguments of the constructor."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from .errors import InputError

PARTS = ("network", "sites", "model", "prior")
"""Arguments of constructors that are described on their own."""

LEARNED = "learned"
"""Key that marks a setting which training changes, such as a coupling that is a parameter."""


class Described:
    """Base of classes that keep the arguments of their constructor as attributes of the same names.

    This does not apply to the arguments ``network``, ``sites`` and ``model``. A saved posterior is described by these
    attributes; see `pyro_isingvit.saved`.
    """

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values that JSON can hold.

        If the constructor takes ``**options``, the arguments of the base class are included.
        """
        found: dict[str, Any] = {}
        for cls in type(self).__mro__:
            if cls is Described:
                break
            if "__init__" not in vars(cls):
                continue
            parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
            for parameter in parameters:
                if parameter.name in PARTS or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    continue
                if not hasattr(self, parameter.name):
                    raise InputError(
                        f"{type(self).__name__}: its constructor's argument {parameter.name!r} is not kept; set "
                        f"self.{parameter.name} = {parameter.name}, so that a saved posterior can be described"
                    )
                found.setdefault(parameter.name, plain(getattr(self, parameter.name)))
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break
        return found


def describe(part: Any) -> dict[str, Any]:
    """Class and settings of a network, prior, guide or estimator; classes of this package without their module."""
    cls = type(part)
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    name = cls.__qualname__ if ours else f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(part, Described):
        return {"class": name, "settings": part.settings()}
    return {"class": name, "settings": plain(getattr(part, "config", {}))}


def plain(value: Any) -> Any:
    """A setting as a value that JSON can hold. An object that JSON cannot hold becomes ``"<name>"``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, nn.Parameter):
        return {LEARNED: value.tolist()}
    if isinstance(value, Tensor):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Described):
        return describe(value)
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"
