"""The pages of the documentation, and the code in them.

As a program it runs a page at full length and puts the pictures that its code makes beside the page:

    python -m tests.pages docs/tutorials/decoys.md
"""

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path, language: str) -> list[str]:
    """The blocks of a language on a page; those that show a file begin in another way."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run(page: Path, code: str) -> None:
    """Run the code of a page in the current folder."""
    exec(compile(code, str(page.relative_to(ROOT)), "exec"), {"__name__": page.stem})


if __name__ == "__main__":
    shown = Path(sys.argv[1]).resolve()
    scratch = ROOT / "runs" / "pages" / shown.stem
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.chdir(scratch)
    run(shown, "\n".join(blocks_of(shown, "python")))
    for picture in scratch.glob("*.png"):
        shutil.copy(picture, shown.parent)
