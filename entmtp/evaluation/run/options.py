"""Options that name what they give, as NAME=PATH."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from entmtp.errors import EntMTPError


def named_paths(option: str, texts: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Paths by name, of an option that may repeat.

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
