"""Provenance of numbers: model, heads, banks, hardware, versions, git commit, command, profile and date."""

from collections.abc import Iterator, Mapping
from typing import Any


def flatten_provenance(provenance: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested provenance into (dotted name, text) pairs."""
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            yield from flatten_provenance(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "–" if value is None else str(value)
