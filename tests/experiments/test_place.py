"""Nobody's files are lost: what is in the way of a run, what is in the place of one, and full disks."""

import errno
import os
import shutil
import stat
import warnings
from functools import partial

import pytest

from pyro_isingvit import InputError, Posterior, StorageError, TrainingError, export, prune
from pyro_isingvit.diagnostics import findings
from pyro_isingvit.drafts import ASIDE, drafting
from pyro_isingvit.experiments import place, runs
from pyro_isingvit.experiments.reading import evaluate, report
from pyro_isingvit.experiments.runs import resume_run, run
from tests.conftest import small_config

EXAMINE = findings.examine


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def known(finished, tmp_path_factory):
    """What a report on the run finds, and a run folder with that report; both take long to make."""
    seen, folder = [], tmp_path_factory.mktemp("known") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "examine", lambda *arguments: seen.append(EXAMINE(*arguments)) or seen[0])
        report(shutil.copytree(finished, folder), progress=False)
    return seen[0], folder


@pytest.fixture
def quick_report(known, monkeypatch):
    monkeypatch.setattr(findings, "examine", lambda *arguments: known[0])
    return partial(report, progress=False)


@pytest.fixture
def reported(known, tmp_path):
    return shutil.copytree(known[1], tmp_path / "run")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_is_replaced_by_another_and_leaves_nothing_beside_it(data, reported, tmp_path):
    before = evaluate(reported).scores
    run(small_config(data, seed=1), reported, overwrite=True, progress=False)
    assert evaluate(reported).scores != before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not (reported / "report.html").exists()
    assert not (reported / place.WORK).exists()


@pytest.mark.parametrize("mine", ["notes.txt", "figures/mine.png", "unfinished.txt", "deterministic/x"])
def test_what_no_run_wrote_is_in_the_way(mine, data, reported):
    (reported / mine).write_text("mine")
    before = listing(reported)
    with pytest.raises(InputError, match=f"no run of this version wrote '{mine}', so it is not overwritten"):
        run(small_config(data), reported, overwrite=True, progress=False)
    assert listing(reported) == before


def test_what_systems_leave_is_not_in_the_way(data, reported):
    (reported / ".DS_Store").write_bytes(b"")
    place.check_free(reported, overwrite=True)


def test_what_appears_meanwhile_is_kept_and_the_run_too(data, tmp_path, monkeypatch):
    score = runs.score_fits

    def meanwhile(*arguments):
        (tmp_path / "run" / "notes.txt").write_text("mine")
        return score(*arguments)

    monkeypatch.setattr(runs, "score_fits", meanwhile)
    with pytest.raises(InputError, match=r"wrote 'notes\.txt'.* what was to be written there is in") as caught:
        run(small_config(data), tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    draft = str(caught.value).rpartition(" is in ")[2]
    monkeypatch.undo()
    accuracy = evaluate(draft).scores["ising"]["accuracy"]
    (tmp_path / "run" / "notes.txt").unlink()
    assert resume_run(tmp_path / "run", progress=False).scores["ising"]["accuracy"] == accuracy
    assert evaluate(draft).scores["ising"]["accuracy"] == accuracy  # named to the user, so never removed
    assert len(list(tmp_path.iterdir())) == 2


def test_two_runs_at_one_place(data, copy, tmp_path):
    with place.working(tmp_path / "new", False) as work:
        place.begin(work, {})
        for overwrite, message in ((False, "has an unfinished run"), (True, "another process is at work there")):
            with pytest.raises(InputError, match=message):
                run(small_config(data), tmp_path / "new", overwrite=overwrite, progress=False)
        with pytest.raises(InputError, match="another process is at work there"):
            resume_run(tmp_path / "new", progress=False)
    with place.working(copy, True), pytest.raises(InputError, match="another process is at work there"):
        run(small_config(data), copy, overwrite=True, progress=False)
    assert evaluate(copy).scores


def test_an_unfinished_run_is_refused_by_name(data, tmp_path):
    with place.working(tmp_path / "new", False) as work:
        place.begin(work, {})
        for use in (evaluate, report):
            with pytest.raises(InputError, match=r"is unfinished; 'isingvit fit --resume .*new' goes on with it"):
                use(tmp_path / "new")


def test_bad_settings_leave_nothing(data, tmp_path):
    config = small_config(data).model_copy(update={"train": 1000})
    with pytest.raises(InputError, match="train=1000"):
        run(config, tmp_path / "runs" / "new", progress=False)
    assert not list(tmp_path.iterdir())


def test_training_that_breaks_down_keeps_its_checkpoints(data, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise TrainingError("loss=nan")

    monkeypatch.setattr(runs, "fit_deterministic", broken)
    with pytest.raises(TrainingError):
        run(small_config(data), tmp_path / "run", progress=False)
    monkeypatch.undo()
    assert resume_run(tmp_path / "run", progress=False).scores == evaluate(tmp_path / "run").scores


def test_a_process_that_was_killed_between_two_names(copy, tmp_path):
    scores = evaluate(copy).scores
    copy.rename(tmp_path / f".run-0123abcd{ASIDE}")
    assert place.resolved(copy) == copy
    assert evaluate(copy).scores == scores
    shutil.copytree(copy, tmp_path / f".run-4567cdef{ASIDE}")
    place.resolved(copy)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_drafts_of_processes_that_were_killed_are_removed(tmp_path):
    (tmp_path / ".small-0123abcd.draft").mkdir()
    (tmp_path / ".other-0123abcd.draft").mkdir()
    with drafting(tmp_path / "small", lambda: None) as draft:
        (draft / "x").write_text("x")
        with drafting(tmp_path / "small", lambda: None):
            assert draft.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other-0123abcd.draft", "small"]


def test_modes_follow_the_umask(data, tmp_path):
    before = os.umask(0o027)
    try:
        run(small_config(data), tmp_path / "run", progress=False)
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_links_in_a_run_folder_lead_nowhere(copy, quick_report, tmp_path):
    (tmp_path / "dear.html").write_text("dear to me")
    (copy / "report.html").symlink_to(tmp_path / "dear.html")
    quick_report(copy)
    assert (tmp_path / "dear.html").read_text() == "dear to me"
    shutil.rmtree(copy / "figures")
    (tmp_path / "elsewhere").mkdir()
    (copy / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link to another place"):
        report(copy)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_home_is_meant(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run(small_config(data), "~/run", progress=False)
    assert evaluate("~/run").scores
    Posterior.load("~/run").save("~/again")
    assert (tmp_path / "again" / "posterior.json").is_file()


@pytest.fixture
def full(monkeypatch):
    """A disk that is full from the n-th file on."""

    def fill(n, patch=monkeypatch):
        sync, count = os.fsync, iter(range(10**6))

        def fsync(handle):
            if stat.S_ISREG(os.fstat(handle).st_mode) and next(count) >= n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return sync(handle)

        patch.setattr(os, "fsync", fsync)

    return fill


@pytest.mark.parametrize("n", [0, 1, 6, 10])
def test_a_full_disk_at_any_write_of_a_run(n, data, copy, full, monkeypatch):
    """The plan, checkpoints, which are done without, and each kind of file."""
    scores = evaluate(copy).scores
    full(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checkpoints
        with pytest.raises(StorageError, match=r"No space left on device\); free some space on that disk") as caught:
            run(small_config(data, seed=1), copy, compare=False, overwrite=True, progress=False)
    monkeypatch.undo()
    assert evaluate(copy).scores == scores
    assert ("--resume" in str(caught.value)) == (copy / place.WORK / place.PLAN).is_file()


def test_what_was_trained_is_kept_where_a_picture_does_not_fit(data, tmp_path, full, monkeypatch):
    def too_large(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyro_isingvit.diagnostics.plots.style.write", too_large)
    with pytest.raises(StorageError, match=r"What was trained is kept: 'isingvit fit --resume .*run' goes on"):
        run(small_config(data), tmp_path / "run", progress=False)
    monkeypatch.undo()
    monkeypatch.setattr("torch.optim.Adam.step", None)  # all steps were taken
    assert resume_run(tmp_path / "run", progress=False).scores == evaluate(tmp_path / "run").scores


def test_a_full_disk_leaves_an_exported_network_and_a_report_as_they_were(
    reported, exported, quick_report, tmp_path, full
):
    small = shutil.copytree(exported, tmp_path / "small")
    before, page = {path.name: path.read_bytes() for path in small.iterdir()}, (reported / "report.html").read_bytes()
    network = prune(Posterior.load(reported), density=0.2)
    for n in range(3):
        with pytest.MonkeyPatch.context() as patch:
            full(n, patch)
            with pytest.raises(StorageError, match="No space left on device"):
                export(network, small, overwrite=True)
        assert {path.name: path.read_bytes() for path in small.iterdir()} == before
    full(0)
    with pytest.raises(StorageError, match="No space left on device"):
        quick_report(reported)
    assert (reported / "report.html").read_bytes() == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small"]
