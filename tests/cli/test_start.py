"""Help and shell completion, which do not wait for torch."""

import re
import subprocess
import sys

import pytest

from pyro_isingvit.cli import app, options
from pyro_isingvit.data import AUGMENTATIONS, DATASETS

COMMANDS = ("fit", "predict", "evaluate", "report", "prune", "runs", "study", "push", "pull")

PROGRAM = """
import sys
from pyro_isingvit.cli import main
sys.argv[0] = "isingvit"
try:
    main()
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "pyro", "pandas", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def light(*arguments):
    """What the program writes, which must not import what is slow."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [(), ("fit",)])
def test_help_imports_no_engine(command):
    assert f"Usage: isingvit {' '.join(command)}" in light(*command, "--help")


def test_a_shell_completes_commands(monkeypatch):
    monkeypatch.setenv("_ISINGVIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "isingvit pr")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert light() == "predict\nprune\n"


def test_options_name_what_there_is():
    """In words of their own, as the modules that know are slow to import."""
    for option, names in ((options.Augmentation, AUGMENTATIONS), (options.Dataset, DATASETS)):
        words = re.findall(r"[\w-]+", option.__metadata__[0].help)
        assert set(names) <= set(words)


def test_every_command_is_here():
    assert {command.name for command in app.registered_commands} == set(COMMANDS)


def test_completion_can_be_installed(isingvit):
    code, out, _ = isingvit("--help")
    assert code == 0
    assert "--install-completion" in out
    assert "--show-completion" in out
