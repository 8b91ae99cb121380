"""Predictions of image files as lines of CSV or JSON."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..experiments.predict import FilePrediction

NUMBERS = ("probability", "lower", "upper", "entropy", "mutual_information")
"""Columns with a number, which are attributes of a `FilePrediction`."""

DIGITS = 7
"""Significant digits of numbers, about as many as float32 has."""


class Format(StrEnum):
    """Formats of predictions."""

    CSV = "csv"
    JSONL = "jsonl"


def first_line(classes: Sequence[str], form: Format) -> bytes:
    """What comes before the rows: the names of the columns of CSV, and nothing in JSON."""
    if form is Format.JSONL:
        return b""
    return _csv(["path", "class", *NUMBERS, "error", *(f"p_{name}" for name in classes)])


def line(row: "FilePrediction", classes: Sequence[str], form: Format) -> bytes:
    """The line of one prediction. Values that a file that could not be read lacks are empty, or null in JSON."""
    numbers = {name: None if row.error else _rounded(getattr(row, name)) for name in NUMBERS}
    if form is Format.CSV:
        probs = [_rounded(row.probs[name]) if row.probs else None for name in classes]
        return _csv([row.path, row.label, *numbers.values(), row.error, *probs])
    probs_by_name = {name: _rounded(p) for name, p in row.probs.items()}
    facts: dict[str, Any] = {"path": str(row.path), "class": row.label or None, **numbers}
    facts |= {"error": row.error or None, "probabilities": probs_by_name or None}
    return (json.dumps(facts) + "\n").encode()


def _rounded(number: float) -> float:
    return float(format(number, f".{DIGITS}g"))


def _csv(cells: Iterable[Any]) -> bytes:
    """A line of CSV; names of files that are no text keep their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")
