"""Bayesian sparsification of Vision Transformers as a probabilistic program.

The names that everybody types are here; the rest is in the namespaces ``data``, ``priors``, ``guides``,
``diagnostics``, ``plots`` and ``pruning``. ``__init__.pyi`` lists them all. Each is imported when it is first used.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lazy_loader

_checkout = Path(__file__).parent.parent
if not (Path(__file__).parent / "models").is_dir() and (_checkout / "models" / "ising_vit.py").is_file():
    __path__.append(str(_checkout))  # run in place: models/ and guides/ lie beside this folder, see setup.cfg

try:
    __version__ = version("pyro-isingvit")
except PackageNotFoundError:  # run in place, without an installation
    __version__ = "0+unknown"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
