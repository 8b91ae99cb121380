"""Studies: every run once, whatever happens."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch

from pyro_isingvit import InputError, StorageError
from pyro_isingvit.experiments import study
from pyro_isingvit.experiments.page import write_study
from pyro_isingvit.experiments.plan import Plan, read_plan
from pyro_isingvit.experiments.study import read_result, results, run_cell, run_study
from pyro_isingvit.processes import peak_memory

COMMAND = [sys.executable, "-c", "from pyro_isingvit.cli import main; main()", "study"]


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
    again = read_result(out / "cells" / f"{cell.key}.safetensors")
    torch.testing.assert_close(alone.outcomes[0].probs, again.outcomes[0].probs)


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
        assert math.isnan(memory) or memory < peak_memory() - 500
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


@pytest.fixture
def two(tmp_path):
    """A plan of two quick runs, and the command that runs it."""
    small = {"fit.steps": 3, "test": 60, "validation": 60, "fit.device": "cpu", "network.dim": 8}
    block = {"dataset": "digits", "train": 60, "method": "deterministic"}
    plan = Plan(name="two", set=small, seeds=(0, 1), blocks=[block])
    (tmp_path / "two.yaml").write_text(json.dumps(plan.model_dump(mode="json", exclude_unset=True)))
    return plan, [*COMMAND, str(tmp_path / "two.yaml"), "--out", str(tmp_path / "out")]


def test_a_full_disk_leaves_the_results_that_there_are(two, tmp_path):
    """The disk has room for what a run says, and none for its result."""
    (plan, command), folder = two, tmp_path / "out" / "cells"
    done = run_cell(plan.cells()[0], tmp_path / "out", {})
    before = done.read_bytes()
    limited = ["bash", "-c", 'ulimit -f 2; exec "$@"', "-", *command]
    study = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert study.returncode == 1
    assert study.stderr.count("cannot be written (File too large)") == 1, study.stderr
    assert [path.name for path in folder.glob("*.safetensors")] == [done.name]
    assert not list(folder.glob("*.tmp"))
    assert run_study(plan, tmp_path / "out", {}, progress=False) == {}
    assert done.read_bytes() == before
    assert len(results(plan, tmp_path / "out")) == 2


def test_a_log_that_does_not_fit_on_the_disk_leaves_the_other_runs_alone(two, tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("no room")

    monkeypatch.setattr(study, "write", full)
    plan = two[0].model_copy(update={"set": two[0].set | {"validation": 5000}})
    failures = run_study(plan, tmp_path / "out", {}, progress=False)
    assert [("validation=5000" in error) for error in failures.values()] == [True, True]


def test_two_studies_at_one_place(two, tmp_path):
    """Each run is made by one of the two, and both end with all of them."""
    plan, command = two
    studies = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for each in studies:
        said = each.communicate()
        assert each.returncode == 0, said
    assert len(results(plan, tmp_path / "out")) == 2
    assert [path.suffix for path in (tmp_path / "out" / "cells").glob("[!.]*")] == [".safetensors"] * 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fit.stepz", 1, "fit.stepz=1: Extra inputs"),
        ("fit.steps", -3, "fit.steps=-3: Input should be"),
        ("image_size", [4, 4], "image_size=[4, 4]: must be"),
    ],
)
def test_a_setting_that_does_not_fit_stops_a_study_before_its_first_run(tmp_path, name, value, message):
    blocks = [{"dataset": "digits", "train": 60, "method": "deterministic", "set": own} for own in ({}, {name: value})]
    with pytest.raises(InputError, match=re.escape(message)):
        run_study(Plan(name="late", blocks=blocks), tmp_path, {}, progress=False)
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(InputError, match=r"cannot be read .*; restore it, or make it again"):
        read_result(path)


@pytest.mark.parametrize("content", [b"something else", None])
def test_a_foreign_file_does_not_stop_the_report(content, plan_file, tmp_path):
    plan = read_plan(plan_file)
    first, second = plan.cells()[:2]
    path = run_cell(first, tmp_path, {})
    foreign = path.with_name(f"{second.key}.safetensors")
    if content is None:
        safetensors.torch.save_file({"x": torch.zeros(1)}, foreign)
    else:
        foreign.write_bytes(content)
    with pytest.warns(UserWarning, match=f"left out: .*{second.key}"):
        assert [result.cell.key for result in results(plan, tmp_path)] == [first.key]


def test_sizes_of_images_can_be_varied(tmp_path):
    block = {"dataset": "digits", "train": 60, "method": "dropout", "vary": {"image_size": [4, 12]}}
    plan = Plan(
        name="sizes", set={"fit.steps": 3, "test": 60, "validation": 60, "network.patch_size": 4}, blocks=[block]
    )
    for cell in plan.cells():
        result = read_result(run_cell(cell, tmp_path, {}))
        assert result.config.network.image_size == (cell.image_size, cell.image_size)
