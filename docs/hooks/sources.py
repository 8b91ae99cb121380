"""The sources laid out as they are installed, where `models/` and `guides/` are parts of the package (setup.cfg).

mkdocstrings reads docstrings from sources, without importing them, and looks for each module in its installed place.
Equations in docstrings are as Sphinx and Pyro have them; in the copy that it reads they are as Markdown has them.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

_sources = tempfile.TemporaryDirectory()
_EQUATIONS = (
    (re.compile(r":math:`([^`]+)`"), r"$\1$"),
    (re.compile(r"^( *)\.\. math:: *((?:.+\n)+)", re.MULTILINE), r"\1$$\2\1$$\n"),
    (re.compile(r"^ *\.\. code-block:: \w+\n\n", re.MULTILINE), ""),
)


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Copy the sources to a folder that is laid out as they are installed, and point mkdocstrings there."""
    root, package = Path(config["config_file_path"]).parent, Path(_sources.name) / "pyro_isingvit"
    shutil.copytree(root / "pyro_isingvit", package, dirs_exist_ok=True)
    for part in ("models", "guides"):
        shutil.copytree(root / part, package / part, dirs_exist_ok=True)
    for path in package.rglob("*.py"):
        text = path.read_text()
        for pattern, markdown in _EQUATIONS:
            text = pattern.sub(markdown, text)
        path.write_text(text)
    config["plugins"]["mkdocstrings"].config["handlers"]["python"]["paths"] = [_sources.name]
    return config
