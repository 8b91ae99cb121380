"""`isingvit study` from end to end, and its refusals."""

import pytest


def test_study_lists_runs_reports_and_runs_one(isingvit, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, blocks: [{dataset: digits, train: 60, method: [ising, deterministic], "
        "set: {fit.steps: 20, test: 50, validation: 50, draws: 2, network.dim: 8, network.mlp_ratio: 2}}]}"
    )
    code, out, _ = isingvit("study", "mine.yaml", "--list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["0", "-"], ["1", "-"]]
    code, out, _ = isingvit("study", "mine.yaml", "--cell", 1)
    assert code == 0
    assert "Result: studies/mine/cells/digits-60-deterministic-0-" in out
    code, out, _ = isingvit("study", "mine.yaml", "--list")
    assert [line.split()[:2] for line in out.splitlines()] == [["0", "-"], ["1", "done"]]
    code, out, _ = isingvit("study", "mine.yaml")
    assert (code, out.splitlines()[-1]) == (0, "2 of 2 runs are in studies/mine; --report makes the tables")
    code, out, _ = isingvit("study", "mine.yaml", "--report")
    assert (code, out) == (0, "Report: studies/mine/report/README.md\n")
    assert "| ising |" in (tmp_path / "studies" / "mine" / "report" / "README.md").read_text()
    _, out, _ = isingvit("study", "--plans")
    assert {line.partition(":")[0] for line in out.splitlines()} >= {"smoke", "published", "few"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PLAN='': give a YAML file"),
        (["nowhere.yaml"], "plan='nowhere.yaml': no such file"),
        (["smoke", "--cell", "1000"], "--cell=1000: the plan has runs 0 to"),
        (["smoke", "--jobs", "0"], "jobs=0"),
        (["smoke", "--report", "--list"], "--list and --report: give one of them"),
        (["smoke", "--cell", "0", "--jobs", "2"], "--cell with --jobs=2: give one of them"),
        (["smoke", "--report"], "no result of the plan 'smoke' there"),
        (["few"], "data_root=None: MNIST is read from files"),
        (["few", "--data-root", "a=b/mnist"], "data_root='a=b/mnist': no MNIST there"),
    ],
)
def test_studies_refuse_bad_input(isingvit, tmp_path, arguments, message):
    code, out, err = isingvit("study", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
