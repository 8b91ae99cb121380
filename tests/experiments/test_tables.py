"""What is made of the results of a study: tables, differences and pictures."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from pyro_isingvit import InputError
from pyro_isingvit.diagnostics.calibration import paired_difference
from pyro_isingvit.experiments.outcome import Outcome, Predictor
from pyro_isingvit.experiments.page import write_study
from pyro_isingvit.experiments.pictures import stem_of
from pyro_isingvit.experiments.plan import Cell, Plan, read_plan
from pyro_isingvit.experiments.study import Result, read_result, run_cell
from pyro_isingvit.experiments.tables import choices, differences, result_table, summary


def page_of(plan, folder):
    """The report, once all is run."""
    for cell in plan.cells():
        run_cell(cell, folder, {})
    return write_study(plan, folder, folder / "report").read_text()


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
        sharper = [replace(each, probs=each.probs.pow(1 + spread * seed)) for each in ising.outcomes]
        ours = [replace(each, probs=each.probs / each.probs.sum(-1, keepdim=True)) for each in sharper]
        for one, each in ((ising, ours), (dropout, dropout.outcomes)):
            every.append(replace(one, cell=one.cell.model_copy(update={"seed": seed}), outcomes=each))
    labels, other = ising.labels, dropout.outcomes[0].probs
    of_each = pd.concat(paired_difference(every[2 * seed].outcomes[0].probs, other, labels) for seed in range(3))
    of_each = of_each[of_each["score"] == "nll"]
    within = math.sqrt((of_each["se"] ** 2).sum()) / 3
    between = of_each["difference"].std() / math.sqrt(3)
    gaps = differences(every)
    row = gaps[(gaps["method"] == "ising") & (gaps["baseline"] == "dropout 0.3") & (gaps["score"] == "nll")]
    assert (between > within) == (spread > 0)
    assert row["se"].item() == pytest.approx(max(between, within))


def outcome(method, probs):
    return Outcome(Predictor(method), probs, 1.0, 1.0, 1.0, 1.0, 1.0)


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
        Result(cell, config, labels, [outcome(cell.method.name, torch.rand(20, 3, generator=generator))], 1.0, "")
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
        | {"nll": n, "accuracy": a, "curve": False}
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
    assert len({stem_of(name) for name in ("a/x.npz", "b/x.npz", "a-x.npz", "mnist", "mnist.npz")}) == 5
    assert stem_of("fashion-mnist") == "fashion-mnist"
    assert "/" not in stem_of("/tmp/x.npz")


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
    table = pd.DataFrame(
        [row | {"method": m, "curve": m != "ising", "seed": s} for m in ("ising", "ising-path") for s in (0, 1)]
    )
    means = summary(table)
    assert means["method"].tolist() == ["ising"]
    assert means["seeds"].tolist() == [2]
    assert means["accuracy_sd"].tolist() == [0.0]
