"""Write a pruned network to disk, for use without Pyro."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from ..drafts import drafting, put_back
from ..errors import InputError
from ..files import home, write
from ..network import stem
from . import compact
from .compact import CompactViT

FILES: dict[str, str] = {"torch": "network.pt2", "onnx": "network.onnx"}

METRICS = "metrics.json"
"""The file that `isingvit prune` adds."""

WRITTEN = {compact.CONFIG, compact.WEIGHTS, "compact.py", "__pycache__", METRICS, *FILES.values()}

MODULE = "pruned.safetensors"
"""The file of `PrunedModule.save`."""

ONNX_PACKAGES = ("onnx", "onnxscript")

_STEM_IMPORT = "from ..network.stem import STEMS, Stem, as_floats, check_stem, stem_features\n"
"""The line by which `compact` imports from the package."""


def export(
    network: CompactViT,
    folder: str | Path,
    formats: Sequence[str] = (),
    overwrite: bool = False,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a network into a folder that can be used without this package.

    The folder gets ``weights.safetensors``, ``config.json`` and ``compact.py``, whose function `load` reads the other
    two and needs torch only. Each format adds one file, which takes batches of any size of images as floats in [0, 1]:

    * ``"torch"``: ``network.pt2`` of `torch.export`, for ``torch.export.load(file).module()``;
    * ``"onnx"``: ``network.onnx``, with input ``images`` and output ``logits``.

    Args:
        network: a network that `prune` or `prune_draws` made; it is not changed.
        folder: the folder to write.
        formats: formats to write in addition to safetensors.
        overwrite: whether a folder that `export` made may be replaced.
        extra: texts of further files, by name.

    Raises:
        StorageError: if a file cannot be written. What was in the folder is as it was.
        InputError: if a format is unknown or its packages are missing, or the folder exists.
    """
    if not isinstance(network, CompactViT):
        raise InputError(f"network={type(network).__name__}: give a CompactViT, as prune and shrink make them")
    folder = check(folder, formats, overwrite)
    with drafting(folder, partial(check, folder, formats, overwrite)) as draft:
        tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        data = safetensors.torch.save(tensors)
        write(draft / compact.WEIGHTS, data)
        write(draft / compact.CONFIG, compact.describe(network.config, hashlib.sha256(data).hexdigest()))
        write(draft / "compact.py", _module())
        for one in formats:
            again = compact.load(draft)
            write_as(one, again, (again.config.channels, *again.config.image_size), draft / FILES[one])
        for name, text in (extra or {}).items():
            write(draft / name, text)


def check(folder: str | Path, formats: Sequence[str], overwrite: bool) -> Path:
    """Check that `export` can write there, before any work is done; arguments and errors are those of `export`."""
    folder = home(folder).resolve()
    put_back(folder)
    if isinstance(formats, str):
        raise InputError(f"formats={formats!r}: give a sequence of formats, e.g. ({formats!r},)")
    for one in formats:
        if one not in FILES:
            raise InputError(f"formats={one!r}: choose of {list(FILES)}; safetensors are always written")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if "onnx" in formats and missing:
        raise InputError(f"formats='onnx': needs {' and '.join(missing)}: pip install 'pyro-isingvit[onnx]'")
    if folder.exists() and not overwrite:
        raise InputError(f"folder={str(folder)!r} exists: choose another, or overwrite=True (--overwrite)")
    if folder.exists() and not _ours(folder):
        raise InputError(f"folder={str(folder)!r} exists and is not only an exported network: choose another")
    in_the_way = [parent for parent in folder.parents if parent.exists() and not parent.is_dir()]
    if in_the_way:
        raise InputError(f"folder={str(folder)!r}: {in_the_way[0]} is a file; choose another")
    return folder


def _module() -> str:
    """The text of ``compact.py``: the stem and the compact network in one file that does not import this package."""
    network = Path(compact.__file__).read_text(encoding="utf-8")
    docstring, _, code = network.partition('"""\n\n')
    start = code.index(_STEM_IMPORT)
    imports, rest = code[:start], code[start + len(_STEM_IMPORT) :]
    of_stem = Path(stem.__file__).read_text(encoding="utf-8").partition('"""\n\n')[2]
    return f'{docstring}"""\n\n{imports}{of_stem}\n\n{rest.lstrip()}'


def _ours(folder: Path) -> bool:
    """Whether a folder holds what `export` and `isingvit prune` write, and nothing else."""
    if not folder.is_dir():
        return False
    there = {path.name for path in folder.iterdir()}
    if MODULE in there:
        return not there - {MODULE, METRICS, *FILES.values()}
    if there - WRITTEN:
        return False
    try:
        return bool(json.loads((folder / compact.CONFIG).read_text(encoding="utf-8"))["format"] == compact.FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_as(format: str, network: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Write a network as one of `FILES`, for batches of any size of images of a shape (channels, height, width)."""
    images = torch.rand(2, *shape)
    batch = {"images": {0: torch.export.Dim("batch", max=2**31 - 1)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the exporters
        program = torch.export.export(network, (images,), dynamic_shapes=batch, strict=False)
        if format == "torch":
            torch.export.save(program, path)
        else:
            torch.onnx.export(
                program,
                f=path,
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
