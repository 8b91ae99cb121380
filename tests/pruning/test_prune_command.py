"""`isingvit prune` from end to end, and its refusals."""

import json
import shutil

import pytest

from pyro_isingvit.experiments.prune import prune_run
from pyro_isingvit.experiments.reading import evaluate
from pyro_isingvit.experiments.runs import run
from pyro_isingvit.pruning import cost
from pyro_isingvit.pruning.compact import load
from tests.conftest import QUICK_RUN, small_config

WIDE = *QUICK_RUN, "--dim", 32, "--mlp-ratio", 8
"""A network that has something to cut."""


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch):
    monkeypatch.setattr(cost, "ROUND_SECONDS", 1e-3)


def test_prune_shrinks_a_run(isingvit, tmp_path):
    """Before and after in one table, as Python says; the folder loads; refusals leave nothing behind."""
    assert isingvit("fit", *WIDE, "--no-compare")[0] == 0
    run = tmp_path / "runs" / "digits"
    code, out, _ = isingvit("prune", run, "--density", 0.3, "--fine-tune", 20, "--format", "torch", "--out", "small")
    assert code == 0
    for word in ("before", "after", "parameters", "MFLOP", "MB", "of 1 ", "of 256", "accuracy", "NLL", "ECE"):
        assert word in out
    small = load(tmp_path / "small")
    facts = json.loads((tmp_path / "small" / "metrics.json").read_text())
    assert f"{sum(p.numel() for p in small.parameters()):,}" in out
    assert facts["after"]["cost"]["parameters"] == sum(p.numel() for p in small.parameters())
    again = evaluate(run)
    probs = small(again.data.test.images)
    assert facts["after"]["scores"]["accuracy"] == pytest.approx(
        float((probs.argmax(-1) == again.data.test.labels).float().mean())
    )
    assert facts["before"]["scores"]["nll"] == pytest.approx(again.scores["median network"]["nll"], rel=1e-5)
    assert facts["before"]["cost"]["flops"] > 2 * facts["after"]["cost"]["flops"]
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "compact.py",
        "config.json",
        "metrics.json",
        "network.pt2",
        "weights.safetensors",
    }
    code, out, _ = isingvit("prune", run, "--level", "weight", "--density", 0.7, "--out", "zeros")
    assert code == 0
    assert "zeros in dense matrices: they save no time" in " ".join(out.split())
    units = tmp_path / "runs" / "units"
    assert isingvit("fit", *WIDE, "--structured", "--target-density", 0.4, "--no-compare", "--out", units)[0] == 0
    assert evaluate(units).result.posterior.guide.mask_shapes["encoder.up"] == (2, 256, 1)
    assert isingvit("prune", units, "--draws", 3, "--out", "draws")[0] == 0
    assert load(tmp_path / "draws").config.members == 3
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in (
        (["--level", "units"], "level='units': choose of"),
        (["--density", "2"], "density=2.0"),
        (["--threshold", "0"], "threshold=0.0"),
        (["--format", "tflite"], "formats='tflite': choose of"),
        (["--fine-tune", "-1"], "fine_tune=-1"),
        (["--draws", "1"], "draws=1"),
        (["--draws", "3", "--fine-tune", "9"], "draws of a posterior are not trained on"),
    ):
        code, out, err = isingvit("prune", run, "--out", "new", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
    for folder, message in ((run / "deterministic", "no run.json there"), (run, "exists: choose another")):
        code, _, err = isingvit("prune", folder, "--out", "small" if folder == run else "new")
        assert code == 2
        assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_run_is_pruned_without_its_data_set(isingvit, data, tmp_path):
    """The same network, without scores; what needs images says which, and how to give them."""
    shutil.copy(data, tmp_path / "mine.npz")
    run(small_config(tmp_path / "mine.npz"), tmp_path / "run", compare=False, progress=False)
    whole = prune_run("run", "whole", "hidden", density=0.5)
    (tmp_path / "away").mkdir()
    (tmp_path / "mine.npz").rename(tmp_path / "away" / "mine.npz")
    code, out, _ = isingvit("prune", "run", "--out", "small", "--level", "hidden", "--density", 0.5)
    assert code == 0
    assert "accuracy" not in out
    lacks = f"run='run': the images of its data set cannot be read (dataset='{tmp_path}/mine.npz': no such file;"
    assert f"There are no scores: {lacks}" in out
    assert (tmp_path / "small" / "weights.safetensors").read_bytes() == (
        tmp_path / "whole" / "weights.safetensors"
    ).read_bytes()
    facts = json.loads((tmp_path / "small" / "metrics.json").read_text())
    assert facts["after"]["scores"] == {}
    assert facts["after"]["cost"]["flops"] == whole.after.cost.flops
    for command in (
        ("evaluate", "run"),
        ("report", "run"),
        ("prune", "run", "--out", "new", "--fine-tune", 5),
        ("prune", "run", "--out", "new", "--data-root", "nowhere"),
    ):
        code, out, err = isingvit(*command)
        assert (code, out) == (2, "")
        assert err.startswith(f"isingvit: {lacks}")
        assert err.endswith("give the folder that has them with --data-root (data_root in Python)\n")
        assert not (tmp_path / "new").exists()
    assert isingvit("evaluate", "run", "--data-root", "away")[0] == 0
    assert "accuracy" in isingvit("prune", "run", "--out", "new", "--data-root", "away")[1]
