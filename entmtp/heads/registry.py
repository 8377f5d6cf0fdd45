"""Draft heads by the ``model_type`` of their configuration, as a checkpoint names it.

A class registers itself where it is defined. Every module of :mod:`entmtp.heads` is imported when a checkpoint is first
looked up, so a new file needs no other line.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TypeVar

import entmtp.heads
from entmtp.heads.base import DraftHeads

Heads = TypeVar("Heads", bound=type[DraftHeads])

_REGISTERED: dict[str, type[DraftHeads]] = {}


def register_heads(heads: Heads) -> Heads:
    """Decorator of a class of heads that checkpoints may hold. Raises ValueError if its ``model_type`` is taken."""
    model_type = heads.config_class.model_type
    if model_type in _REGISTERED:
        raise ValueError(f"heads: model_type '{model_type}' is registered already")
    _REGISTERED[model_type] = heads
    return heads


def registered_heads() -> dict[str, type[DraftHeads]]:
    """Every class of heads by its ``model_type``."""
    _import_all()
    return _REGISTERED


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(entmtp.heads.__path__, f"{entmtp.heads.__name__}."):
        importlib.import_module(module.name)
