"""Every example runs; one without small arguments here fails the suite."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

RUNS = {
    "custom_guide.py": (["--steps", "60"], ("accuracy", "inclusion of living units", "inclusion of dead units")),
    "decoys.py": (["--steps", "120", "--decoys", "1"], ("selected ", "by weight norm", "picture: ")),
    "grid_search.py": (
        ["--steps", "4", "--train", "40", "--test", "50", "--folds", "2", "--inclusion", "0.3", "--coupling", "0", "1"],
        ("best: ", "weights kept", "support vectors"),
    ),
    "regression.py": (["--steps", "60", "--train", "60", "--temperatures", "0.1"], ("RMSE", "intervals hold")),
    "custom_prior.py": (["--steps", "60"], ("IsingSpikeSlab", "CentredPixels")),
}
"""Small arguments of each, and what it has to print."""


def test_every_example_has_a_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == RUNS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_example(name, monkeypatch, capsys, tmp_path):
    arguments, words = RUNS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    assert all(word in out for word in words)


@pytest.mark.parametrize("name", RUNS)
def test_example_is_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 80
