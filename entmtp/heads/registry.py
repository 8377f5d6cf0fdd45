"""Registry of draft head classes by the ``model_type`` in a checkpoint's configuration.

A class registers itself with a decorator. The first lookup imports every module of :mod:`entmtp.heads`, so a new file
needs no other line.
"""

from __future__ import annotations

from typing import TypeVar

from entmtp.heads.base import DraftHeads
from entmtp.submodules import import_submodules

Heads = TypeVar("Heads", bound=type[DraftHeads])

_REGISTERED: dict[str, type[DraftHeads]] = {}


def register_heads(heads: Heads) -> Heads:
    """Registers a class of heads for loading. Raises ValueError if its ``model_type`` is registered already."""
    model_type = heads.config_class.model_type
    if model_type in _REGISTERED:
        raise ValueError(f"heads: model_type '{model_type}' is registered already")
    _REGISTERED[model_type] = heads
    return heads


def registered_heads() -> dict[str, type[DraftHeads]]:
    """All classes of heads by ``model_type``."""
    import_submodules("entmtp.heads")
    return _REGISTERED
