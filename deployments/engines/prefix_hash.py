"""Beginnings of texts as hashes, so that routers can tell which replica holds the longest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import takewhile

import numpy as np

BLOCK = 32
"""Tokens that one hash stands for, with all those before it."""


def block_hashes(tokens: Sequence[int], salt: str) -> list[int]:
    """A hash of every beginning whose length is a multiple of :data:`BLOCK`, shortest first.

    Texts of another ``salt`` have other hashes: no prompt begins with them.
    """
    hashes: list[int] = []
    digest = salt.encode()
    whole = np.asarray(tokens, dtype="<i8")
    for begin in range(0, len(whole) - BLOCK + 1, BLOCK):
        digest = hashlib.blake2b(digest + whole[begin : begin + BLOCK].tobytes(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little"))
    return hashes


def shared_tokens(hashes: Iterable[int], held: frozenset[int]) -> int:
    """Tokens at the beginning that a holder of ``held`` need not read again, in whole blocks."""
    return BLOCK * sum(1 for _ in takewhile(held.__contains__, hashes))
