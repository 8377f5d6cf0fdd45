"""Typed look-ups in a GGUF file's metadata."""

from __future__ import annotations

from typing import TypeVar

from entmtp.errors import EntMTPError, quoted
from entmtp.models.gguf.file import GgufFile

T = TypeVar("T", bound=int | float | str | bool)


def optional(file: GgufFile, key: str, kind: type[T]) -> T | None:
    """Metadata value of ``key``, or None if there is none.

    Raises:
        EntMTPError: if the value is of another type.
    """
    value = file.metadata.get(key)
    if value is None:
        return None
    if kind is float and type(value) is int:
        return kind(value)
    if type(value) is not kind:
        raise EntMTPError(
            f"model '{file.path}': {key} is {quoted(value)}, not of type {kind.__name__}; download the file again"
        )
    return value


def required(file: GgufFile, key: str, kind: type[T]) -> T:
    """Metadata value of ``key``.

    Raises:
        EntMTPError: if there is none, or it is of another type.
    """
    value = optional(file, key, kind)
    if value is None:
        raise EntMTPError(f"model '{file.path}': its metadata lacks {key}; convert the model with a newer llama.cpp")
    return value


def items(file: GgufFile, key: str, kind: type[T]) -> list[T]:
    """Metadata list of ``key``, whose items are all of one type.

    Raises:
        EntMTPError: if there is none, or it has other items.
    """
    values = file.metadata.get(key)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise EntMTPError(
            f"model '{file.path}': {key} is no list of type {kind.__name__}; convert the model with a newer llama.cpp"
        )
    return values  # type: ignore[return-value]  # each item was looked at
