"""`isingvit runs`: a list of runs, and two side by side."""

import shutil

from pyro_isingvit.experiments.reading import evaluate
from tests.experiments.test_listing import unfinished


def test_runs_are_listed_by_default_in_runs(isingvit, finished, data, tmp_path):
    assert isingvit("runs")[::2] == (
        2,
        "isingvit: folder='runs': no such folder; give one that has run folders, or runs to compare\n",
    )
    shutil.copytree(finished, tmp_path / "runs" / "first")
    unfinished(data, tmp_path / "runs" / "second")
    (tmp_path / "runs" / "other").mkdir()
    code, out, err = isingvit("runs")
    assert (code, err) == (0, "")
    assert "…" not in out
    lines = {line.split()[0]: " ".join(line.split()[1:-1]) for line in out.splitlines() if line.strip()}
    score = evaluate(finished).scores["ising"]
    shown = f"{score['accuracy']:.2%} {score['nll']:.4f} {score['density']:.1%} {score['seconds']:.0f}"
    assert lines["first"] == f"few.npz 20 1 ViT 1 x 4, J=1 6 0.001 {shown}"
    assert lines["second"] == "few.npz 20 1 ViT 1 x 4, J=1 6 - unfinished"
    assert "runs/other: no run there" in out
    assert isingvit("runs", "runs/first")[1].count("first") == 2  # a run itself is listed alone


def test_runs_are_compared(isingvit, finished, data, tmp_path):
    shutil.copytree(finished, tmp_path / "first")
    unfinished(data, tmp_path / "second")
    code, out, _ = isingvit("runs", "first", "first")
    assert code == 0
    assert "The runs have the same settings." in out
    accuracy = f"{evaluate(finished).scores['ising']['accuracy']:.2%}"
    assert f"ising: accuracy {accuracy} {accuracy}" in " ".join(out.split())
    assert "different test images" not in out
    out = isingvit("runs", "first", "second")[1]
    assert f"ising: accuracy {accuracy} -" in " ".join(out.split())
    assert "second (unfinished)" in out
    assert isingvit("runs", "first", "nowhere")[0] == 2
