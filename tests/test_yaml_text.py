"""YAML that reads as it looks."""

import pytest

from pyro_isingvit import InputError
from pyro_isingvit.yaml_text import as_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-3", -3),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("no", "no"),
        ("2026-01-01", "2026-01-01"),
        ("0x1F", "0x1F"),
        ("true", True),
        ("null", None),
        ("[1, {a: '010'}]", [1, {"a": "010"}]),
    ],
)
def test_values_are_read_as_they_look(text, value):
    assert parse_yaml(f"name: {text}", "plan") == {"name": value}
    assert parse_yaml(as_yaml({"name": value}), "plan") == {"name": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "aliases are not read; write the value again"),
        ("a: 1\nb: 2\na: 3", "'a' comes twice"),
        ("a: [1, 2", "not YAML that can be read"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 5000, "plan: not YAML"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "plan")


def test_a_value_that_comes_twice_is_written_twice():
    both = ["x" * 10]
    assert parse_yaml(as_yaml({"a": both, "b": both}), "plan") == {"a": both, "b": both}
