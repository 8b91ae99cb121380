"""Files that are written whole or not at all, and read only as they were written.

A file is written under another name, flushed to the disk, and renamed. JSON files and files of tensors hold the SHA-256
of their contents, so that what was changed or damaged since is refused. Nothing in a file is executed.
"""

import csv
import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import InputError, StorageError

DIGEST = "sha256"
"""Key of the digest of the rest of a JSON file."""

LARGEST = 2**23
"""Size in bytes above which a JSON file or table is not read: such files describe, and tensors are elsewhere."""

_HEADER, _FACTS = "pyro_isingvit", "facts"


def home(path: str | Path) -> Path:
    """A path as a user gave it, with ``~`` for the home folder.

    Raises:
        InputError: if there is no such home folder, or the path has a null character.
    """
    try:
        path = Path(path).expanduser()
        path.exists()
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"path={str(path)!r}: {error}; give another") from None
    except OSError as error:
        raise InputError(f"path={str(path)[:60]!r}: {error.strerror or error}; give another") from None
    return path


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Context in which an `OSError` becomes a `StorageError` that names the path and the reason."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        place = error.filename or path
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space on that disk" if full else "choose another place"
        raise StorageError(f"{place}: cannot be written ({error.strerror or error}); {fix}") from None


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Context with a file that takes the place of what is there once all of it is written, as a whole or not at all.

    A symbolic link is replaced, and what it points to is left alone.

    Raises:
        StorageError: if it cannot be written. The file is then as it was.
    """
    draft = path.with_name(f".{path.name[:100]}-{secrets.token_hex(4)}.tmp")
    with storing(path):
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        sync(path.parent)


def write(path: Path, data: bytes | str) -> None:
    """Write a file, in place of what is there, so that at any time it is there as a whole, before or after.

    Raises:
        StorageError: see `writing`.
    """
    with writing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def sync(folder: Path) -> None:
    """Have the disk keep the names in a folder, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with the digest of all of them."""
    rest = {name: value for name, value in facts.items() if name != DIGEST}
    return {**rest, DIGEST: _digest(_canonical(rest))}


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON with a digest; see `write`."""
    write(path, json.dumps(sealed(facts), indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The facts that `write_json` wrote.

    Raises:
        InputError: if the file is no JSON object, or was changed since.
    """
    try:
        facts = json.loads(_text(path), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({_line(error)}); restore it, or fit again") from None
    if not isinstance(facts, dict):
        raise InputError(f"{path}: not a JSON object but a {type(facts).__name__}; restore it, or fit again")
    digest = facts.pop(DIGEST, None)
    if digest != _digest(_canonical(facts)):
        found = "of an earlier version" if digest is None else "was changed or damaged since it was written"
        raise InputError(f"{path}: {found}; restore it, or fit again")
    return facts


def write_table(path: Path, table: pd.DataFrame, form: str | None = None) -> None:
    """Write a table as CSV; see `write`. ``form`` is a format of numbers, e.g. ``"%.6g"``; all digits if None."""
    write(path, table.to_csv(index=False, float_format=form))


def read_table(path: Path) -> pd.DataFrame:
    """Read a table.

    Raises:
        InputError: if the file is no table.
    """
    try:
        return pd.read_csv(io.StringIO(_text(path)))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a table ({_line(error)}); restore it, or fit again") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and facts that JSON can hold, as one safetensors file with a digest; see `write`."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts or {})
    header = json.dumps({_FACTS: text, DIGEST: _digest(text, plain)})  # one entry, as several have no order
    write(path, safetensors.torch.save(plain, {_HEADER: header}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `write_tensors` wrote, on the CPU.

    Raises:
        InputError: if the file is no such file, or was changed since.
    """
    text, digest = _metadata(path)
    try:
        tensors = safetensors.torch.load_file(path)
        right = _digest(text, tensors) == digest
        facts = dict(json.loads(text))
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({_line(error)}); restore it, or make it again") from None
    if not right:
        raise InputError(f"{path}: was changed or damaged since it was written; restore it, or make it again")
    return tensors, facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a file of tensors alone, which takes no time. They are not compared with the digest.

    Raises:
        InputError: if the file is none that `write_tensors` wrote.
    """
    try:
        return dict(json.loads(_metadata(path)[0]))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({_line(error)}); restore it, or make it again") from None


def _metadata(path: Path) -> tuple[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_line(error)}); restore it, or make it again") from None
    try:
        header = json.loads(metadata[_HEADER])
        return str(header[_FACTS]), str(header[DIGEST])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: tensors, but none that this version wrote; restore it, or make it again") from None


def _digest(text: str, tensors: Mapping[str, Tensor] | None = None) -> str:
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted((tensors or {}).items()):
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        found.update(raw)
    return found.hexdigest()


def _canonical(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: larger than {LARGEST:,} bytes; no file of this package is; restore it")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({_line(error)}); restore it, or fit again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
