"""A run that is killed on the command line goes on, and ends with the same files."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pyro_isingvit.experiments.reading import evaluate
from pyro_isingvit.processes import Children

COMMAND = [sys.executable, "-c", "from pyro_isingvit.cli import main; main()"]

SETTINGS = ("--train", "20", "--validation", "10", "--test", "10", "--patch-size", "2", "--dim", "4", "--depth", "1")
SHORT = ("--heads", "2", "--mlp-ratio", "2", "--batch-size", "10", "--steps", "60", "--device", "cpu")
FIT = ("fit", *SETTINGS, *SHORT, "--checkpoint-every", "0")


def start(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder.parent / "said").open("w") as said:
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=said
        )


def said(folder):
    return (folder.parent / "said").read_text()


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path):
    """An empty folder, beside which is what commands say."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_kill_9_at_any_moment(data, folder):
    fit = (*FIT, "--dataset", str(data))
    whole = start(folder, *fit, "--out", "whole")
    assert whole.wait() == 0, said(folder)
    dice, arguments = random.Random(0), (*fit, "--out", "run")
    for kill in range(2):
        process = start(folder, *arguments)
        wait_for(lambda: list((folder / "run").glob("unfinished/checkpoints/*/*")), process)
        time.sleep(dice.uniform(0, 1))
        process.kill()
        process.wait()
        assert not (folder / "run" / "run.json").exists(), kill
        arguments = ("fit", "--resume", "run", "--checkpoint-every", "0")
    last = start(folder, *arguments)
    assert last.wait() == 0, said(folder)
    for name in ("posterior.safetensors", "posterior.json", "deterministic/posterior.safetensors", "trials.csv"):
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    scores = [json.loads((folder / name / "metrics.json").read_text()) for name in ("run", "whole")]
    for method, each in scores[0].items():
        assert each | {"seconds": 0} == scores[1][method] | {"seconds": 0}
    assert sorted(path.name for path in folder.iterdir()) == ["run", "whole"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_go_on(number, data, folder, isingvit):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("ignored here, and so in children: a shell runs this in the background")
    process = start(folder, *FIT, "--dataset", str(data), "--out", "run", "--steps", "100000", "--no-compare")
    wait_for(lambda: list((folder / "run").glob("unfinished/checkpoints/*/*")), process)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert f"'isingvit fit --resume {folder / 'run'}' goes on from there" in said(folder)
    assert said(folder).count("\n") == 1
    code, _, err = isingvit("evaluate", folder / "run")
    assert code == 2
    assert "is unfinished" in err


def test_standard_output_may_be_closed(data, tmp_path):
    fit = [*FIT, "--dataset", str(data), "--out", "run", "--no-compare", "--steps", "20"]
    line = " ".join(f"'{word}'" for word in [*COMMAND, *fit]) + " | true"
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=False, capture_output=True)
    assert evaluate(tmp_path / "run").config.fit.steps == 20


def runs(number):
    """Whether a process runs; one that has ended may wait for someone to note it."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_children_end_with_their_parent(tmp_path):
    """Also if the parent is killed, and could not say so. They do not import from the folder they are in."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "child.py").write_text(
        "import os, sys, threading, time\n"
        "from pyro_isingvit.processes import end_with_parent\n"
        "def main():\n"
        "    open(sys.stdin.readline().strip(), 'w').write(str(os.getpid()))\n"
        "    threading.Thread(target=end_with_parent, daemon=True).start()\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "queue.py").write_text("raise ValueError('a file of the user')")
    parent = "from pyro_isingvit.processes import Children; print(Children().run('child', 'pid', 1))"
    path = os.pathsep.join([str(tmp_path / "modules"), *filter(None, sys.path)])
    command = [sys.executable, "-P", "-c", parent]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    wait = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < wait
        assert process.poll() is None
        time.sleep(0.05)
    number = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    while runs(number):
        assert time.monotonic() < wait
        time.sleep(0.05)


def test_a_child_that_ends_says_why(tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text("def main():\n    raise SystemExit('no luck')")
    monkeypatch.syspath_prepend(tmp_path)
    assert Children().run("child", "order", 1) == (1, "no luck\n")
