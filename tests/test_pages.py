"""All code of the README and of the documentation's pages runs, each page in one session; long fits are cut short."""

import re
import shlex
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import typer

from pyro_isingvit.cli import app

from .pages import PAGES, ROOT, blocks_of, run

README = ROOT / "README.md"
QUICK = {
    "steps=3000": "steps=60",
    "steps=2000": "steps=60",
    "steps=1500": "steps=60",
    "steps=1000": "steps=60",
    "steps=300": "steps=60",
    "steps=200": "steps=60",
    "train=1000": "train=200",
    "test=500": "test=100",
    "draws=200": "draws=30",
    "draws=100": "draws=30",
    "range(100)": "range(3)",
    "prior=10": "prior=2",
}
"""What takes long on the pages, and what the tests run in its place."""

CODE = {str(page.relative_to(ROOT)): "\n".join(blocks_of(page, "python")) for page in PAGES}
COMMANDS = sorted(
    {
        command.strip()
        for page in PAGES
        for block in blocks_of(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        for command in re.split(r"&&|\|", line.partition(" #")[0])
        if command.strip().startswith("isingvit ") and "--help" not in command
    }
)


@pytest.mark.parametrize("page", [name for name, code in CODE.items() if code])
def test_every_block_of_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = CODE[page]
    for slow, fast in QUICK.items():
        code = re.sub(rf"\b{re.escape(slow)}(?!\d)", fast, code)
    run(ROOT / page, code)
    plt.close("all")


def test_nothing_is_cut_short_that_no_page_has():
    assert all(any(slow in code for code in CODE.values()) for slow in QUICK)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_that_a_page_gives_it(command):
    """It is parsed and not run."""
    _, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    with group.make_context("isingvit", list(arguments), resilient_parsing=True):
        name, *rest = arguments
        group.commands[name].make_context(name, rest)


def test_the_conformance_suite_accepts_the_prior_and_guide_of_the_pages(tmp_path):
    """As a new user would: the classes of the two pages in a file of their own, outside the package, under pytest."""
    code = CODE["docs/tutorials/write_a_prior.md"] + "\n" + CODE["docs/tutorials/write_a_guide.md"]
    classes = re.findall(r"^class .*?(?=^\S|\Z)", code, re.MULTILINE | re.DOTALL)
    imports = [
        "import torch",
        "import pyro",
        "import pyro_isingvit as iv",
        "from pyro_isingvit.testing import GuideConformance, PriorConformance",
    ]
    (tmp_path / "test_mine.py").write_text("\n".join([*imports, *classes]))
    suites = sum(f"({kind}Conformance)" in each for kind in ("Prior", "Guide") for each in classes)
    assert suites == len(classes) / 2 >= 2, "every class of these pages has a suite there"
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout
    assert int(re.search(r"(\d+) passed", completed.stdout)[1]) >= 6 * suites


def test_the_main_job_takes_ten_lines():
    statements = [line for line in blocks_of(README, "python")[0].splitlines() if line and "import " not in line]
    assert len(statements) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_it_names_exists(page):
    """mkdocs checks links between pages; these are the links of files that are read on a host of repositories too."""
    for path in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / path).stat().st_size > 0, path


def test_pictures_are_small():
    """Those that pages make; pictures of studies are larger."""
    for folder in ("docs", "docs/tutorials", "docs/how_to"):
        assert all(path.stat().st_size < 150_000 for path in (ROOT / folder).glob("*.png"))
