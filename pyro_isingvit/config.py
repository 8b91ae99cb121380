"""The base class of configurations, which are checked, frozen, and written to a run folder as JSON."""

import re
from typing import Annotated, Any

import pydantic

from .errors import InputError

Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
"""A seed, from which many streams of random numbers may be derived."""


class Config(pydantic.BaseModel):
    """A frozen set of named settings. Unknown names and impossible values raise `InputError`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise InputError(describe(error)) from None

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read what `model_dump_json` wrote.

        Raises:
            InputError: if a name is unknown or a value is impossible.
        """
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            raise InputError(describe(error)) from None


def describe(error: pydantic.ValidationError) -> str:
    """The first problem of a validation error on one line: the argument, its value, and what is allowed."""
    each = error.errors()
    first = next((one for one in each if one["type"] == "extra_forbidden"), each[0])  # a typo also leaves one missing
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in first["loc"])
    if where and isinstance(first.get("ctx", {}).get("error"), InputError):  # of settings within settings
        return f"{where}.{message}" if re.match(r"[\w.]+=", message) else f"{where}: {message}"
    return f"{where}={first['input']!r}: {message}" if where else message
