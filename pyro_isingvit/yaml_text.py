"""YAML that reads as it looks: values are those of JSON, nothing is named twice, nothing is repeated by reference."""

import re
from typing import Any

import yaml

from .errors import InputError


class _Loader(yaml.SafeLoader):
    """Reads the core schema of YAML 1.2, without aliases, by which a short text can stand for a huge one."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not read; write the value again", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _starts in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _starts)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text.

    Args:
        text: the text.
        what: what it is, for messages.

    Raises:
        InputError: if it is not YAML, has an alias, or names something twice.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{what}: not YAML that can be read ({' '.join(str(error).split())})") from None


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(values: Any) -> str:
    """Values of JSON as YAML that `parse_yaml` reads."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=110))
