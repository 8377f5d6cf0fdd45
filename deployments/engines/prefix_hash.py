"""Hashes of prompt prefixes, by which routers find the replica that has cached the longest one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import takewhile

import numpy as np

BLOCK = 32
"""Tokens of a block; each hash covers its block and all blocks before it."""


def block_hashes(tokens: Sequence[int], salt: str) -> list[int]:
    """Hash of every prefix whose length is a multiple of :data:`BLOCK`, shortest first.

    Hashes of different salts differ, so that prompts of one salt never match prefixes of another.
    """
    hashes: list[int] = []
    digest = salt.encode()
    whole = np.asarray(tokens, dtype="<i8")
    for begin in range(0, len(whole) - BLOCK + 1, BLOCK):
        digest = hashlib.blake2b(digest + whole[begin : begin + BLOCK].tobytes(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little"))
    return hashes


def shared_tokens(hashes: Iterable[int], cached: frozenset[int]) -> int:
    """Length of the longest prefix, in whole blocks, whose hashes are all in ``cached``."""
    return BLOCK * sum(1 for _ in takewhile(cached.__contains__, hashes))
