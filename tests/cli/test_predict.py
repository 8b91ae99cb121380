"""`isingvit predict`: its two formats, where it writes, and what it says of files that cannot be read."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from pyro_isingvit.experiments import predict_files

COLUMNS = ["path", "class", "probability", "lower", "upper", "entropy", "mutual_information", "error"]


@pytest.fixture
def pictures(tmp_path):
    """Three images, of which one is damaged, in a folder."""
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a, b", "c"):
        Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path / "pictures"


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_what_python_has(isingvit, finished, pictures):
    code, out, err = isingvit("predict", finished, "pictures/a, b.png", "pictures/[c]*", "--device", "cpu")
    assert (code, err) == (0, "")
    rows = table(out)
    assert list(rows[0]) == [*COLUMNS, "p_0", "p_1", "p_2"]
    expected = list(predict_files(finished, ["pictures/a, b.png", "pictures/c.png"], device="cpu"))
    assert [row["path"] for row in rows] == [str(each.path) for each in expected]
    for row, each in zip(rows, expected, strict=True):
        assert (row["class"], row["error"]) == (each.label, "")
        for name in COLUMNS[2:-1]:
            assert float(row[name]) == pytest.approx(getattr(each, name), rel=1e-6)
        assert [float(row[f"p_{name}"]) for name in each.probs] == pytest.approx(list(each.probs.values()), rel=1e-6)


def test_a_damaged_file_has_a_row_that_says_so(isingvit, finished, pictures, tmp_path):
    options = "--device", "cpu", "--out"
    code, out, err = isingvit("predict", finished, "pictures", *options, "p.csv")
    assert (code, out) == (1, "")
    assert err == "isingvit: 1 of 3 files could not be read; their rows say why, in the column error\n"
    rows = table((tmp_path / "p.csv").read_text())
    assert [row["path"] for row in rows] == ["pictures/a, b.png", "pictures/broken.png", "pictures/c.png"]
    assert "broken.png': not an image, or damaged" in rows[1]["error"]
    assert {rows[1][name] for name in rows[1]} == {"pictures/broken.png", rows[1]["error"], ""}
    code, _, _ = isingvit("predict", finished, "pictures", *options, "p.jsonl", "--format", "jsonl")
    assert code == 1
    facts = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [list(each) for each in facts] == [[*COLUMNS, "probabilities"]] * 3
    assert {facts[1][name] for name in facts[1]} == {"pictures/broken.png", rows[1]["error"], None}
    for row, each in ((rows[0], facts[0]), (rows[2], facts[2])):
        assert {f"p_{name}": str(p) for name, p in each["probabilities"].items()}.items() <= row.items()
        assert str(each["entropy"]) == row["entropy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.png",), "files='none.png': no such file or folder"),
        (("pictures", "--out", "pictures"), "--out='pictures' is a folder: give a file"),
        (("pictures", "--out", "nowhere/p.csv"), "--out='nowhere/p.csv': there is no folder 'nowhere'; make it first"),
        (("pictures", "--draws", "0"), "draws=0: must be an integer"),
        (("pictures", "--interval", "2"), "interval=2.0: must lie strictly between 0 and 1"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_what_was_there(isingvit, finished, pictures, tmp_path, arguments, message):
    (tmp_path / "p.csv").write_text("before")
    code, out, err = isingvit("predict", finished, "--out", "p.csv", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "p.csv").read_text() == "before"
    assert "no run.json there" in isingvit("predict", pictures, pictures)[2]
