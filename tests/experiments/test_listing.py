"""Runs are listed and compared from their folders alone."""

import json
import shutil

import pytest

from pyro_isingvit import InputError
from pyro_isingvit.experiments import place
from pyro_isingvit.experiments.listing import differing, find_runs, read_run, same_test_images
from pyro_isingvit.experiments.reading import evaluate
from pyro_isingvit.experiments.record import Unfinished
from pyro_isingvit.files import read_json, write_json
from tests.conftest import small_config


def unfinished(data, folder):
    """A run that was killed at its start."""
    with place.working(folder, False) as work:
        plan = Unfinished(config=small_config(data).model_dump(mode="json"), images="", compare=True)
        place.begin(work, plan.model_dump())
    return folder


@pytest.fixture
def top(finished, data, tmp_path):
    """A folder with finished and unfinished runs, damaged ones, and other things."""
    shutil.copytree(finished, tmp_path / "deep" / "er" / "good")
    unfinished(data, tmp_path / "begun")
    for name in ("metrics.json", "run.json", "posterior.json"):
        folder = shutil.copytree(finished, tmp_path / f"bad {name}")
        (folder / name).write_text((folder / name).read_text().replace("1", "2"))
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    (tmp_path / "deep" / "notes").mkdir()
    for name in ("logs", ".run-0123abcd.draft"):
        shutil.copytree(finished, tmp_path / name)
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_runs_are_found_and_what_is_none_is_named(top):
    runs, others = find_runs(top)
    assert [str(run.folder.relative_to(top)) for run in runs] == ["begun", "deep/er/good"]
    assert [run.finished for run in runs] == [False, True]
    reasons = {str(folder.relative_to(top)): why for folder, why in others.items()}
    assert reasons.pop("photos") == reasons.pop("deep/notes") == "no run there"
    assert reasons.keys() == {f"bad {name}" for name in ("metrics.json", "run.json", "posterior.json")}
    assert all("was changed or damaged since it was written" in why for why in reasons.values())


def test_a_summary_says_what_the_run_says(finished):
    again, summary = evaluate(finished), read_run(finished)
    assert summary.scores == again.scores
    assert summary.config == again.config
    assert summary.temperature == again.result.posterior.model.temperature == 1e-3
    assert summary.written.timestamp() == pytest.approx((finished / "run.json").stat().st_mtime, abs=1e-3)


def test_a_folder_without_runs_and_no_folder(tmp_path):
    assert find_runs(tmp_path) == ([], {tmp_path: "no run there"})
    with pytest.raises(InputError, match="nowhere': no such folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no run\.json there; give a folder that 'isingvit fit' made"):
        read_run(tmp_path)


def test_settings_that_differ(finished, data, tmp_path):
    """Those of other versions too, among finished runs; equal ones are left out."""
    other = shutil.copytree(finished, tmp_path / "other")
    facts = read_json(other / "run.json")
    facts["config"]["fit"] |= {"learning_rate": 0.5, "temperature": 0.25}
    facts["config"]["train"], facts["versions"]["torch"] = 21, "1.0"
    write_json(other / "run.json", facts)
    runs = [read_run(finished), read_run(other)]
    torch = json.loads((finished / "run.json").read_text())["versions"]["torch"]
    assert differing(runs) == {
        "train": [20, 21],
        "fit.learning_rate": [2e-3, 0.5],
        "fit.temperature": [1e-3, 0.25],
        "version.torch": [torch, "1.0"],
    }
    assert differing([runs[0], runs[0]]) == {}
    assert (same_test_images(runs), same_test_images(runs[:1] * 2)) == (False, True)
    begun = read_run(unfinished(data, tmp_path / "begun"))
    assert differing([runs[0], begun]) == {}
