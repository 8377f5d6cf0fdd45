"""Registry of draft head classes by the ``model_type`` in a checkpoint's configuration.

A class registers itself with a decorator. The first lookup imports every module of :mod:`entmtp.heads`, so a new file
needs no other line.
"""

from __future__ import annotations

from typing import TypeVar

from entmtp.errors import EntMTPError
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


def trained_heads() -> dict[str, type[DraftHeads]]:
    """Classes of heads that ``entmtp train`` makes, by kind, in alphabetical order."""
    trained = (heads for heads in registered_heads().values() if heads.is_trainable)
    return {heads.kind: heads for heads in sorted(trained, key=lambda heads: heads.kind)}


def kinds_in_folders() -> tuple[str, ...]:
    """Kinds of heads whose checkpoints can be loaded, in alphabetical order; native heads have none."""
    return tuple(sorted({heads.kind for heads in registered_heads().values()}))


def find_trained_heads(kind: str) -> type[DraftHeads]:
    """Class of the heads of this kind that ``entmtp train`` makes. Raises EntMTPError if there is none."""
    known = trained_heads()
    if kind not in known:
        imported = "heads can only be imported, with 'entmtp import-heads'; to train some,"
        reason = imported if kind in kinds_in_folders() else "is not accepted;"
        raise EntMTPError(f"kind: '{kind}' {reason} choose one of {', '.join(known)}")
    return known[kind]
