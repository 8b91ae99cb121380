"""Diagnostics of a posterior: predictive scores, inclusion probabilities, predictive checks, export to ArviZ, plots.

``__init__.pyi`` lists the names. Each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
