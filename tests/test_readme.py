"""All code of the README runs, in its order, in one session; long fits are cut short."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
QUICK = {
    "steps=3000": "steps=80",
    "steps=200": "steps=60",
    "draws=100": "draws=30",
    "range(100)": "range(3)",
    "prior=10": "prior=2",
}


def test_every_block_of_python_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    code = "\n".join(blocks)
    for slow, fast in QUICK.items():
        assert slow in code
        code = code.replace(slow, fast)
    exec(compile(code, "README.md", "exec"), {})
    assert "median_density" in capsys.readouterr().out


def test_the_conformance_suite_accepts_its_prior_and_guide(tmp_path):
    """As a new user would: the README's classes in a file of their own, outside the package, under pytest."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    classes = [
        match for block in blocks for match in re.findall(r"^class .*?(?=^\S|\Z)", block, re.MULTILINE | re.DOTALL)
    ]
    imports = ["import pyro_isingvit as iv", "from pyro_isingvit.testing import GuideConformance, PriorConformance"]
    assert len(classes) == 4
    (tmp_path / "test_mine.py").write_text("\n".join([*imports, *classes]))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"\b1[0-9] passed", run.stdout)


def test_the_main_job_takes_ten_lines():
    first = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    statements = [line for line in first[1].splitlines() if line and not line.startswith("import ")]
    assert len(statements) <= 10


def test_every_path_it_names_exists():
    root = Path(__file__).parent.parent
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / path).stat().st_size > 0, path
