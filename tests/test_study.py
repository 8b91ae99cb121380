"""Studies: every run once, whatever happens."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_isingvit import InputError
from pyro_isingvit.diagnostics.calibration import paired_difference
from pyro_isingvit.experiments.plan import Cell, Plan, read_plan, shipped_plans
from pyro_isingvit.experiments.study import Result, _peak_memory, read_result, run_cell, run_study
from pyro_isingvit.experiments.tables import _stem, choices, differences, result_table, summary, write_study

PLAN = """
name: small
seeds: [0, 1]
set: {fit.steps: 40, test: 60, validation: 60, draws: 3, fit.device: cpu, network.dim: 8, network.mlp_ratio: 2}
blocks:
  - dataset: digits
    train: 60
    method: [ising, {name: dropout, rate: 0.3}, deterministic]
"""
COMMAND = [sys.executable, "-c", "from pyro_isingvit.cli import main; main()", "study"]


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def page_of(plan, folder):
    """The report, once all is run."""
    for cell in plan.cells():
        run_cell(cell, folder, {})
    return write_study(plan, folder, folder / "report").read_text()


def test_a_plan_is_all_combinations_each_once():
    plan = Plan(
        name="grid",
        seeds=[0, 1],
        blocks=[
            {"dataset": "digits", "train": [10, 20], "method": ["ising"], "vary": {"prior.coupling": [0, 1.5]}},
            {"dataset": "digits", "train": [10], "method": ["ising", "dropout"], "seeds": [0], "set": {"draws": 7}},
            {"dataset": "digits", "train": 10, "method": "ising", "vary": {"prior.coupling": [0]}},
        ],
    )
    cells = plan.cells()
    assert len(cells) == 2 * 2 * 2 + 2
    assert len({cell.key for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {cell.setting for cell in cells} == {"coupling=0", "coupling=1.5", ""}
    recipe = {"network": {"image_size": 8, "patch_size": 4}, "fit": {"steps": 50}}
    cell = next(cell for cell in cells if cell.setting == "coupling=1.5" and cell.seed == 1)
    config = cell.run_config(recipe, None)
    assert (config.prior.coupling, config.fit.seed, config.fit.steps) == (1.5, 1, 50)
    assert recipe == {"network": {"image_size": 8, "patch_size": 4}, "fit": {"steps": 50}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("name: x", "blocks"),
        ("{name: x, blocks: [{dataset: digits, train: 0, method: ising}]}", "greater than 0"),
        ("{name: x, blocks: [{dataset: digits, train: 5, method: sing}]}", "sing"),
        ("{name: x, blocks: [{dataset: digits, train: 5, method: ising, colour: red}]}", "colour"),
    ],
)
def test_wrong_plans_are_refused(tmp_path, text, message):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(path)
    with pytest.raises(InputError, match=r"plan='none.yaml': no such file; give one, or the name of one of \['"):
        read_plan("none.yaml")


def test_a_wrong_setting_of_a_cell_is_named():
    cell = Cell(dataset="digits", train=60, method={"name": "ising"}, seed=0, set={"fit.stepz": 3})
    with pytest.raises(InputError, match="stepz"):
        cell.run_config({"network": {"image_size": 8, "patch_size": 4}}, None)
    cell = Cell(dataset="digits", train=60, method={"name": "ising"}, seed=0, set={"draws.of": 3})
    with pytest.raises(InputError, match=r"set='draws.of': 'draws' is no group"):
        cell.run_config({"draws": 3}, None)


def test_plans_that_ship_can_be_read():
    plans = {name: read_plan(name) for name in shipped_plans()}
    assert {"smoke", "published", "ablations", "coupling", "temperature"} <= set(plans)
    published = {(cell.dataset, cell.train) for cell in plans["published"].cells()}
    assert len(published) == 12
    for name, plan in plans.items():
        assert plan.name == name
        assert plan.about


def test_a_killed_study_goes_on(plan_file, tmp_path):
    """Killed amid its runs, the process alone or with its children: same results, none twice, none corrupt."""
    out, dice = tmp_path / "out", random.Random(0)
    command = [*COMMAND, str(plan_file), "--out", str(out), "--jobs", "2"]
    written: dict[str, int] = {}

    def done() -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in (out / "cells").glob("*.safetensors")}

    for alone, begun in ((True, 1), (False, 2), (True, 4)):
        study = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list((out / "cells").glob(".*.lock"))) < begun:
            assert study.poll() is None
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 4))
        (os.kill if alone else os.killpg)(study.pid, signal.SIGKILL)
        study.wait()
        assert written.items() <= done().items()
        written = done()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert written.items() <= done().items()
    plan = read_plan(plan_file)
    paths = sorted((out / "cells").glob("*.safetensors"))
    assert sorted(path.stem for path in paths) == sorted(cell.key for cell in plan.cells())
    assert not list((out / "cells").glob("*.tmp"))
    for path in paths:
        assert read_result(path).cell.key == path.stem
    before = done()
    assert run_study(plan, out, {}, progress=False) == {}
    assert done() == before
    cell = plan.cells()[0]
    alone = read_result(run_cell(cell, tmp_path / "alone", {}))
    torch.testing.assert_close(alone.probs[0], read_result(out / "cells" / f"{cell.key}.safetensors").probs[0])


def test_results_of_other_images_are_refused(tmp_path, monkeypatch):
    """One name, two folders: a study is of one of them."""
    monkeypatch.chdir(tmp_path)
    quick = {"fit.steps": 3, "test": 10, "validation": 10, "network.dim": 8, "network.patch_size": 2}
    blocks = [{"dataset": "mine.npz", "train": 10, "method": ["deterministic", "dropout"], "set": quick}]
    plan, out = Plan(name="one", blocks=blocks), tmp_path / "out"
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        images, labels = rng.integers(0, 256, (40, 4, 4), np.uint8), rng.permutation(np.arange(40) % 2)
        np.savez(tmp_path / folder / "mine.npz", images=images, labels=labels)
    first, second = plan.cells()
    run_cell(first, out, {"": "a"})
    for refused in (partial(run_study, plan, out, progress=False), partial(run_cell, second, out)):
        with pytest.raises(InputError, match=r"'mine.npz' there is other images \(40 of 1x4x4, .*\) than .*determ"):
            refused(roots={"": "b"})
    assert run_study(plan, out, {"": "a"}, progress=False) == {}
    write_study(plan, out, tmp_path / "report")
    other = run_cell(second, tmp_path / "elsewhere", {"": "b"})
    other.replace(out / "cells" / other.name)
    with pytest.raises(InputError, match=r"dropout.*of other images of 'mine.npz' .* remove those of one"):
        write_study(plan, out, tmp_path / "report")


def test_memory_is_that_of_the_run_alone(plan_file, tmp_path):
    plan = read_plan(plan_file).model_copy(update={"seeds": (0,)})
    held = torch.ones(2**28)  # a GiB
    assert run_study(plan, tmp_path, {}, progress=False) == {}
    paths = list((tmp_path / "cells").glob("*.safetensors"))
    assert len(paths) == 3
    for path in paths:
        memory = read_result(path).memory
        assert math.isnan(memory) or memory < _peak_memory() - 500
    assert held.sum() > 0


def test_failures_are_told_and_leave_the_others_alone(tmp_path):
    plan = read_plan("smoke").model_copy(
        update={
            "blocks": (
                {"dataset": "digits", "train": 60, "method": "deterministic", "set": {"fit.steps": 3}},
                {"dataset": "digits", "train": 60, "method": "deterministic", "set": {"validation": 5000}},
            ),
            "seeds": (0,),
        }
    )
    plan = Plan.model_validate(plan.model_dump(warnings=False))
    failures = run_study(plan, tmp_path, {}, jobs=2, progress=False)
    assert [("validation=5000" in error) for error in failures.values()] == [True]
    assert len(list((tmp_path / "cells").glob("*.safetensors"))) == 1
    with pytest.raises(InputError, match="jobs=0"):
        run_study(plan, tmp_path, {}, jobs=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fit.stepz", 1, "fit.stepz=1: Extra inputs"),
        ("fit.steps", -3, "fit.steps=-3: Input should be"),
        ("image_size", [4, 4], "image_size=[4, 4]: give a"),
    ],
)
def test_a_setting_that_does_not_fit_stops_a_study_before_its_first_run(tmp_path, name, value, message):
    blocks = [{"dataset": "digits", "train": 60, "method": "deterministic", "set": own} for own in ({}, {name: value})]
    with pytest.raises(InputError, match=re.escape(message)):
        run_study(Plan(name="late", blocks=blocks), tmp_path, {}, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["dataset", "train", "method", "seeds"])
def test_lists_of_plans_are_not_empty(name):
    block = {"dataset": "digits", "train": 60, "method": "ising"}
    with pytest.raises(InputError, match=rf"blocks.0.{name}=\[\]: Tuple should have at least 1 item"):
        Plan(name="none", blocks=[block | {name: []}])
    with pytest.raises(InputError, match=r"blocks.0.vary.draws=\[\]: Tuple should have at least 1 item"):
        Plan(name="none", blocks=[block | {"vary": {"draws": []}}])
    with pytest.raises(InputError, match=r"blocks=\[\]: Tuple should have at least 1 item"):
        Plan(name="none", blocks=[])


def test_what_a_run_warns_of_is_kept_and_told(tmp_path, capsys):
    """A coupling in whose prior there are two phases."""
    quick = {"fit.steps": 3, "fit.temperature": 0.1, "draws": 2, "network.dim": 8, "network.mlp_ratio": 2}
    block = {"dataset": "digits", "train": 60, "method": "ising", "vary": {"prior.coupling": [0, 3]}}
    plan = Plan(name="warns", set=quick | {"test": 60, "validation": 60}, blocks=[block])
    calm, ordered = plan.cells()
    assert run_study(plan, tmp_path, {}) == {}
    assert "has two phases" in (tmp_path / "cells" / f"{ordered.key}.log").read_text()
    assert not (tmp_path / "cells" / f"{calm.key}.log").exists()
    assert f"{ordered.key} warns: see " in capsys.readouterr().out


def test_a_damaged_result_is_named(plan_file, tmp_path):
    cell = read_plan(plan_file).cells()[2]
    path = run_cell(cell, tmp_path, {})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"not a result, or damaged .*; remove it and run the study again"):
        read_result(path)


def test_tables_and_pictures(plan_file, tmp_path):
    plan = read_plan(plan_file)
    cells = plan.cells()
    with pytest.raises(InputError, match="no result of the plan 'small' there"):
        write_study(plan, tmp_path, tmp_path / "report")
    for cell in cells[:5]:
        run_cell(cell, tmp_path, {})
    page = write_study(plan, tmp_path, tmp_path / "report").read_text()
    assert "1 of 6 runs are not there yet" in page
    table = pd.read_csv(tmp_path / "report" / "results.csv")
    assert table["method"].value_counts().to_dict() == {
        "ising": 2,
        "ising, temperature-scaled": 2,
        "ising, median network": 2,
        "ising, median network, temperature-scaled": 2,
        "dropout 0.3": 2,
        "dropout 0.3, temperature-scaled": 2,
        "deterministic": 1,
        "deterministic, temperature-scaled": 1,
    }
    for name in ("digits-60-calibration.png", "cost.png"):
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in page
    mean = table.loc[table["method"] == "ising", "accuracy"].mean()
    spread = table.loc[table["method"] == "ising", "accuracy"].std()
    assert f"| ising | {100 * mean:.1f} ± {100 * spread:.1f} |" in page


def test_differences_are_paired_and_by_seed(plan_file, tmp_path):
    plan = read_plan(plan_file)
    every = [read_result(run_cell(cell, tmp_path, {})) for cell in plan.cells() if cell.method.name != "deterministic"]
    gaps = differences(every)
    gaps = gaps[gaps["baseline"] == "dropout 0.3"].set_index("score")
    table = result_table(every).groupby("method")[["accuracy", "nll", "brier"]].mean()
    for score in ("accuracy", "nll", "brier"):
        expected = table.loc["ising", score] - table.loc["dropout 0.3", score]
        assert gaps.loc[score, "difference"] == pytest.approx(expected, abs=1e-5)
        assert gaps.loc[score, "se"] > 0
        assert gaps.loc[score, "seeds"] == 2


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_an_error_is_no_smaller_than_that_of_the_test_images(plan_file, tmp_path, spread):
    """Three trainings that differ by nothing, or by much."""
    ising, dropout = (
        read_result(run_cell(cell, tmp_path, {}))
        for cell in read_plan(plan_file).cells()
        if cell.method.name != "deterministic" and cell.seed == 0
    )
    every = []
    for seed in range(3):
        ours = [probs.pow(1 + spread * seed) for probs in ising.probs]
        probs = {"ising": [p / p.sum(-1, keepdim=True) for p in ours], "dropout": dropout.probs}
        for one in (ising, dropout):
            cell = one.cell.model_copy(update={"seed": seed})
            every.append(replace(one, cell=cell, probs=probs[cell.method.name]))
    labels, other = ising.labels, dropout.probs[0]
    of_each = pd.concat(paired_difference(every[2 * seed].probs[0], other, labels) for seed in range(3))
    of_each = of_each[of_each["score"] == "nll"]
    within = math.sqrt((of_each["se"] ** 2).sum()) / 3
    between = of_each["difference"].std() / math.sqrt(3)
    gaps = differences(every)
    row = gaps[(gaps["method"] == "ising") & (gaps["baseline"] == "dropout 0.3") & (gaps["score"] == "nll")]
    assert (between > within) == (spread > 0)
    assert row["se"].item() == pytest.approx(max(between, within))


def test_networks_of_other_sizes_are_not_compared():
    """The deterministic network is of one size, ours of two."""
    own = [("ising", 8), ("ising", 16), ("deterministic", 8)]
    cells = [
        Cell(dataset="digits", train=60, method={"name": method}, seed=0, set={"network.dim": dim})
        for method, dim in own
    ]
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (20,), generator=generator)
    config = cells[0].run_config({"network": {"image_size": 8, "patch_size": 4}, "train": 60}, None)
    every = [
        Result(cell, config, labels, [{"method": cell.method.name}], [torch.rand(20, 3, generator=generator)], 1.0, "")
        for cell in cells
    ]
    assert set(differences(every)["setting"]) == {"network.dim=8"}


def test_scaled_is_compared_with_scaled(plan_file, tmp_path):
    every = [read_result(run_cell(cell, tmp_path, {})) for cell in read_plan(plan_file).cells()]
    gaps = differences(every)
    pairs = set(zip(gaps["method"], gaps["baseline"], strict=True))
    scaled = "ising, temperature-scaled"
    names = "deterministic", "dropout 0.3", "ising, median network"
    others = {f"{name}, temperature-scaled" for name in names}
    assert {pair for pair in pairs if pair[0] == scaled} == {(scaled, other) for other in others}
    assert ("ising", "deterministic, temperature-scaled") in pairs
    assert ("ising", "dropout 0.3") in pairs
    table = result_table(every).groupby(["method", "seed"])["nll"].mean()
    both = [s for s in (0, 1) if ("deterministic, temperature-scaled", s) in table.index]
    expected = sum(table[scaled, s] - table["deterministic, temperature-scaled", s] for s in both) / len(both)
    own = gaps[(gaps["method"] == scaled) & (gaps["score"] == "nll") & gaps["baseline"].str.startswith("deterministic")]
    assert own["difference"].tolist() == [pytest.approx(expected, abs=1e-5)]


def test_validation_images_choose_among_settings():
    rows = [
        {"dataset": "d", "train": 9, "method": "ising", "setting": f"coupling={j}", "seed": 0, "validation_nll": v}
        | {"nll": n, "accuracy": a}
        for j, v, n, a in ((0, 0.5, 0.40, 0.8), (1, 0.4, 0.45, 0.9), (2, 0.6, 0.60, 0.7))
    ]
    row = choices(pd.DataFrame(rows)).iloc[0]
    assert (row["chosen"], row["nll"], row["accuracy"]) == ("coupling=1", 0.45, 0.9)
    assert (row["best"], row["best_nll"], row["best_accuracy"]) == ("coupling=0", 0.40, 0.9)


def test_what_a_block_sets_is_told_apart(tmp_path):
    """Two blocks of one plan that differ in the size of the network, and in the test images."""
    blocks = [
        {"dataset": "digits", "train": 60, "method": ["dropout"], "set": {"network.dim": dim, "test": test}}
        for dim, test in ((8, 60), (16, 50))
    ]
    quick = {"fit.steps": 5, "validation": 60, "network.mlp_ratio": 2}
    plan = Plan(name="two", set=quick, blocks=blocks)
    page = page_of(plan, tmp_path)
    assert "| dropout 0.1 | network.dim=8, test=60 |" in page
    assert "| dropout 0.1 | network.dim=16, test=50 |" in page


def test_pictures_keep_apart_what_was_tested_on_different_images(tmp_path):
    blocks = [
        {"dataset": "digits", "train": 60, "method": ["dropout", "deterministic"], "set": {"test": test}}
        for test in (60, 50)
    ]
    quick = {"fit.steps": 5, "validation": 60, "network.dim": 8, "network.mlp_ratio": 2}
    plan = Plan(name="two", set=quick, blocks=blocks)
    page = page_of(plan, tmp_path)
    assert "![digits-60-calibration.png](" in page
    assert "![digits-60-calibration-2.png](" in page
    assert "60 test images" in page
    assert "50 test images" in page


def test_names_of_pictures_tell_files_apart():
    assert len({_stem(name) for name in ("a/x.npz", "b/x.npz", "a-x.npz", "mnist", "mnist.npz")}) == 5
    assert _stem("fashion-mnist") == "fashion-mnist"
    assert "/" not in _stem("/tmp/x.npz")


@pytest.mark.parametrize("name", ["train", "dataset", "fit.seed", "data_root", "network", "fit"])
def test_a_block_cannot_set_what_a_cell_is(name):
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        Cell(dataset="digits", train=60, method={"name": "ising"}, seed=0, set={name: 3})


def test_sizes_of_images_can_be_varied(tmp_path):
    block = {"dataset": "digits", "train": 60, "method": "dropout", "vary": {"image_size": [4, 12]}}
    plan = Plan(
        name="sizes", set={"fit.steps": 3, "test": 60, "validation": 60, "network.patch_size": 4}, blocks=[block]
    )
    for cell in plan.cells():
        result = read_result(run_cell(cell, tmp_path, {}))
        assert result.config.network.image_size == (cell.image_size, cell.image_size)


def test_a_plan_of_curves_alone(tmp_path):
    settings = {"fit.steps": 40, "test": 60, "validation": 60, "network.dim": 8, "network.mlp_ratio": 2}
    plan = Plan(name="curves", set=settings, blocks=[{"dataset": "digits", "train": 60, "method": "magnitude-pruning"}])
    page = page_of(plan, tmp_path)
    assert "![digits-60-density.png](digits-60-density.png)" in page
    assert "differences.csv" not in page


def test_summary_leaves_curves_out():
    row = {"dataset": "d", "train": 9, "setting": "", "accuracy": 0.5, "nll": 1.0, "ece": 0.1, "brier": 0.2}
    row |= {"density": 0.3, "expected_density": 0.3, "temperature": 1.0, "validation_nll": 1.0}
    row |= {"minutes": 1.0, "memory_mib": 1.0}
    table = pd.DataFrame([row | {"method": m, "seed": s} for m in ("ising", "ising-path") for s in (0, 1)])
    means = summary(table)
    assert means["method"].tolist() == ["ising"]
    assert means["seeds"].tolist() == [2]
    assert means["accuracy_sd"].tolist() == [0.0]
