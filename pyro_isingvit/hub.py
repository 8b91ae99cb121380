"""Runs, posteriors and pruned networks on the Hugging Face hub, with a model card.

Nothing that is downloaded is executed: posteriors and networks are JSON and safetensors, and their digests are checked.
Code is not downloaded, and a run whose network is of a file is opened only with that file.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .drafts import drafting
from .errors import InputError
from .experiments.place import check_finished
from .experiments.record import METRICS, RUN, check_digests, config_of, read_facts
from .files import home, read_json
from .pruning import compact
from .saved import DESCRIPTION, TENSORS

CARD = "README.md"

PULLED = (".json", ".safetensors", ".csv", ".png", ".md", ".onnx")
"""Ends of the names of files that are downloaded; none of them is code."""

SHOW_IMAGES = ("figures", "report.html")
"""What a report adds to a run, and is not uploaded, as it shows images of the data set."""

SCORES = ("accuracy", "nll", "ece", "brier", "density")
"""Scores of a run that the card shows."""


def push(
    folder: str | Path,
    repo: str,
    license: str,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a folder to the hub, in one commit; the repository is made if there is none.

    A report of a run, which shows images, stays here.

    Args:
        folder: a run folder, a folder of `Posterior.save`, or one of `export`.
        repo: name of the repository, ``"owner/name"``.
        license: licence of the network, by the hub's name for it, such as ``"apache-2.0"`` or ``"cc-by-nc-4.0"``. It
            depends on the training data.
        private: whether a new repository is private.
        token: token of the hub; that of ``hf auth login`` if None.
        endpoint: address of a hub; that of Hugging Face, or of the environment variable ``HF_ENDPOINT``, if None.

    Returns:
        Address of the commit.

    Raises:
        InputError: if the folder is none of these, is unfinished or damaged, or the hub refuses.
        ConnectionError: if the hub cannot be reached.
    """
    folder = home(folder)
    kind = kind_of_folder(folder)
    text = _card(folder, kind, repo, license)
    with _asking(repo) as hub:
        api = hub.HfApi(endpoint=endpoint, token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_shared(path.relative_to(folder))]
        files = [hub.CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in paths]
        files.append(hub.CommitOperationAdd(CARD, text.encode()))
        done = api.create_commit(repo, files, commit_message=f"Add a {kind}")
    return str(done.commit_url)


def pull(
    repo: str,
    folder: str | Path,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download what `push` uploaded.

    Args:
        repo: name of the repository, ``"owner/name"``.
        folder: the folder to write, which must not exist.
        revision: branch, tag or commit; the newest of the main branch if None. Name a commit where results have to be
            the same for good.
        token, endpoint: see `push`.

    Returns:
        The folder: of a run for ``isingvit evaluate``, of a posterior for `Posterior.load`, of a network for
        `pyro_isingvit.pruning.load`.

    Raises:
        InputError: if the folder exists, there is no such repository, or it holds nothing of this package, or it is
            damaged.
        ConnectionError: if the hub cannot be reached.
        StorageError: if the folder cannot be written.
    """
    folder = home(folder)
    check = partial(_check_free, folder)
    check()
    with _asking(repo) as hub:
        commit = hub.HfApi(endpoint=endpoint, token=token).model_info(repo, revision=revision).sha
    with drafting(folder, check) as draft:
        with _asking(repo) as hub:
            place = {"local_dir": draft, "token": token, "endpoint": endpoint}
            hub.snapshot_download(repo, revision=commit, allow_patterns=[f"*{end}" for end in PULLED], **place)
        shutil.rmtree(draft / ".cache", ignore_errors=True)
        try:
            kind_of_folder(draft)
        except InputError as error:
            raise InputError(f"repo={repo!r}: {str(error).replace(str(draft), '.')}") from None
    return folder


def kind_of_folder(folder: Path) -> str:
    """What a folder holds: ``"run"``, ``"posterior"`` or ``"network"``.

    Raises:
        InputError: if it is none of these, or a run that is unfinished or damaged.
    """
    if not folder.is_dir():
        raise InputError(f"folder={str(folder)!r}: no folder there")
    if (folder / compact.CONFIG).is_file() and (folder / compact.WEIGHTS).is_file():
        return "network"
    if (folder / DESCRIPTION).is_file() and (folder / TENSORS).is_file() and not (folder / RUN).is_file():
        return "posterior"
    check_finished(folder)
    check_digests(folder, read_facts(folder).files)
    return "run"


def _card(folder: Path, kind: str, repo: str, license: str) -> str:
    """The model card of a folder of a kind: what it is, its scores, the data, and how to load it."""
    facts: dict[str, Any] = {"kind": kind, "repo": repo, "license": license, "version": version("pyro-isingvit")}
    facts |= {"run": None, "scores": {}, "prior": None, "columns": SCORES}
    if kind == "run":
        found = read_facts(folder)
        facts["run"] = config_of(found.config, folder / RUN)
        facts |= {"images": found.images, "classes": found.classes, "versions": found.versions}
        every = json.loads((folder / METRICS).read_bytes())
        facts["scores"] = {method: {s: row[s] for s in SCORES if s in row} for method, row in every.items()}
    if (folder / DESCRIPTION).is_file():
        facts["prior"] = read_json(folder / DESCRIPTION)["prior"]["class"]
    pages = Environment(
        loader=PackageLoader("pyro_isingvit", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template("card.md.j2").render(facts)


def _is_shared(path: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and path.as_posix() != CARD and path.parts[0] not in SHOW_IMAGES


def _check_free(folder: Path) -> None:
    if folder.exists():
        raise InputError(f"folder={str(folder)!r} exists: choose another")


@contextmanager
def _asking(repo: str) -> Iterator[Any]:
    """Context with `huggingface_hub`, in which its errors are ours."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError("hub: needs huggingface_hub; pip install 'pyro-isingvit[hub]'") from None
    try:
        yield huggingface_hub
    except (errors.HFValidationError, errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise InputError(f"repo={repo!r}: {_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise InputError(f"repo={repo!r}: the hub refuses ({_line(error)}); see 'hf auth login'") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.HTTPError) as error:
        raise ConnectionError(f"repo={repo!r}: the hub cannot be reached ({_line(error)})") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
