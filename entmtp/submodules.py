"""Import of all modules of a package, for those that register what they define."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache


@cache
def import_submodules(package: str) -> None:
    """Imports every module of ``package`` once, but not what lies in its subpackages."""
    path = importlib.import_module(package).__path__
    for module in pkgutil.iter_modules(path, f"{package}."):
        importlib.import_module(module.name)
