"""Allocation of cache slots, with prefix caching: a prefix that several prompts share is read once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from entmtp.models.cache import TreeCache


@dataclass
class _Slot:
    """State of one slot.

    Attributes:
        tokens: those whose keys and values are in the cache.
        salt: only prompts with the same salt may reuse the tokens.
        taken: whether a request has the slot.
        dirty: whether cache rows may hold values that are not finite.
        last_used: time of the last release, in releases.
    """

    tokens: list[int] = field(default_factory=list)
    salt: str = ""
    taken: bool = False
    dirty: bool = False
    last_used: int = 0


class Slots:
    """Slots of a cache. The tokens of a released slot stay in the cache until another request takes it."""

    def __init__(self, cache: TreeCache, reuse: bool) -> None:
        """``reuse`` lets prompts reuse cached prefixes of earlier requests."""
        self.reuse = reuse
        self._cache = cache
        self._slots = [_Slot() for _ in cache.lengths]
        self._clock = 0

    @property
    def free(self) -> int:
        """Number of slots that no request has."""
        return sum(not slot.taken for slot in self._slots)

    @property
    def tokens(self) -> int:
        """Number of tokens in slots that requests have."""
        return sum(len(slot.tokens) for slot in self._slots if slot.taken)

    @property
    def cached_prefixes(self) -> list[tuple[str, list[int]]]:
        """Salt and token ids of each slot that has any tokens."""
        return [(slot.salt, list(slot.tokens)) for slot in self._slots if slot.tokens]

    def acquire(self, prompt: Sequence[int], salt: str = "", most: int | None = None) -> tuple[int, int]:
        """Take a free slot; returns it with the number of the prompt's tokens that it holds already.

        These are ``most`` tokens at most, by default all but the prompt's last one, whose hidden state is needed.
        """
        limit = len(prompt) - 1 if most is None else most
        shared = [self._shared_tokens(slot, prompt, salt, limit) for slot in self._slots]
        free = [at for at, slot in enumerate(self._slots) if not slot.taken]
        best = max(range(len(shared)), key=shared.__getitem__)
        # The free slot with the longest shared prefix; among equals the least recently used.
        own = max(free, key=lambda at: (shared[at], -self._slots[at].last_used))
        if shared[own] < shared[best]:
            own = min(free, key=lambda at: self._slots[at].last_used)
        slot = self._slots[own]
        if slot.dirty:
            self._cache.clear(own)
            slot.dirty = False
        if shared[own] < shared[best]:
            slot.tokens = []  # even a copy that fails may have overwritten them
            self._cache.copy_prefix(best, own, shared[best])
        else:
            self._cache.truncate(own, shared[own])
        slot.tokens, slot.salt, slot.taken = list(prompt[: shared[best]]), salt, True
        return own, shared[best]

    def _shared_tokens(self, slot: _Slot, prompt: Sequence[int], salt: str, limit: int) -> int:
        """Length of the prefix, of ``limit`` tokens at most, that the prompt shares with a slot's tokens."""
        if not self.reuse or slot.salt != salt:
            return 0
        limit = min(len(slot.tokens), limit)
        return next((at for at in range(limit) if slot.tokens[at] != prompt[at]), limit)

    def compaction_swaps(self, running: Collection[int]) -> list[tuple[int, int]]:
        """Pairs of slots to swap so that the ``running`` ones become the first slots."""
        late = [slot for slot in running if slot >= len(running)]
        return list(zip(late, (slot for slot in range(len(running)) if slot not in running)))

    def swap(self, one: int, other: int) -> None:
        """Note that two slots were swapped in the cache."""
        self._slots[one], self._slots[other] = self._slots[other], self._slots[one]

    def mark_dirty(self, number: int) -> None:
        """Note that the cache rows of a free slot may hold anything: its tokens can't be reused."""
        self._slots[number].tokens, self._slots[number].dirty = [], True

    def append(self, number: int, tokens: Sequence[int]) -> None:
        """Note the tokens that were appended to a slot."""
        self._slots[number].tokens += tokens

    def release(self, number: int, *, dirty: bool = False) -> None:
        """Free a slot; its tokens stay reusable as a prefix, unless its cache rows are ``dirty``."""
        self._clock += 1
        slot = self._slots[number]
        slot.taken, slot.last_used = False, self._clock
        if dirty:
            self.mark_dirty(number)
