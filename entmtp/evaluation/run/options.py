"""Command-line options of the form NAME=PATH."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from entmtp.errors import EntMTPError


def named_paths(option: str, texts: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Parse the values of a repeatable NAME=PATH option into paths by name.

    Raises:
        EntMTPError: a text is not NAME=PATH with a known name.
    """
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value or name not in known:
            raise EntMTPError(f"{option}: '{text}' is not NAME=PATH with NAME one of {', '.join(known)}")
        pairs[name] = value
    return pairs
