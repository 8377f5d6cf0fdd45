"""Who has which slot of the cache, and what lies in it, so that what several prompts begin with is read once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from entmtp.models.cache import TreeCache


@dataclass
class _Slot:
    """``tokens`` are those whose keys and values lie in the cache; ``used`` counts up, the last one used has most.

    Only prompts of the same ``salt`` may begin with them. The rows of a ``dirty`` slot may hold what is not a number.
    """

    tokens: list[int] = field(default_factory=list)
    salt: str = ""
    taken: bool = False
    dirty: bool = False
    used: int = 0


class Slots:
    """The slots of a cache. What a request leaves in one stays until another needs the room."""

    def __init__(self, cache: TreeCache, reuse: bool) -> None:
        """``reuse`` lets prompts begin with what earlier requests left."""
        self.reuse = reuse
        self._cache = cache
        self._slots = [_Slot() for _ in cache.lengths]
        self._clock = 0

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return sum(not slot.taken for slot in self._slots)

    @property
    def tokens(self) -> int:
        """Tokens that lie in slots that somebody has."""
        return sum(len(slot.tokens) for slot in self._slots if slot.taken)

    @property
    def texts(self) -> list[tuple[str, list[int]]]:
        """Salt and token ids of each slot that has any."""
        return [(slot.salt, list(slot.tokens)) for slot in self._slots if slot.tokens]

    def take(self, prompt: Sequence[int], salt: str = "") -> tuple[int, int]:
        """A free slot, and how many of the prompt's tokens lie in it already; its last one never does."""
        shared = [self._shared(slot, prompt, salt) for slot in self._slots]
        free = [at for at, slot in enumerate(self._slots) if not slot.taken]
        best = max(range(len(shared)), key=shared.__getitem__)
        # The free slot that shares most; among equals the one that was used longest ago.
        own = max(free, key=lambda at: (shared[at], -self._slots[at].used))
        if shared[own] < shared[best]:
            own = min(free, key=lambda at: self._slots[at].used)
        slot = self._slots[own]
        if slot.dirty:
            self._cache.clear(own)
            slot.dirty = False
        if shared[own] < shared[best]:
            slot.tokens = []  # whatever comes of the copy, what lay there is gone
            self._cache.copy_prefix(best, own, shared[best])
        else:
            self._cache.truncate(own, shared[own])
        slot.tokens, slot.salt, slot.taken = list(prompt[: shared[best]]), salt, True
        return own, shared[best]

    def _shared(self, slot: _Slot, prompt: Sequence[int], salt: str) -> int:
        if not self.reuse or slot.salt != salt:
            return 0
        most = min(len(slot.tokens), len(prompt) - 1)
        return next((at for at in range(most) if slot.tokens[at] != prompt[at]), most)

    def to_front(self, running: Collection[int]) -> list[tuple[int, int]]:
        """Pairs of slots whose exchange makes the ``running`` ones the first."""
        behind = [slot for slot in running if slot >= len(running)]
        return list(zip(behind, (slot for slot in range(len(running)) if slot not in running)))

    def swap(self, one: int, other: int) -> None:
        """Notes that two slots were exchanged."""
        self._slots[one], self._slots[other] = self._slots[other], self._slots[one]

    def spoil(self, number: int) -> None:
        """Notes that the rows of a slot that nobody has may hold anything."""
        self._slots[number].tokens, self._slots[number].dirty = [], True

    def write(self, number: int, tokens: Sequence[int]) -> None:
        """Notes what was appended to a slot."""
        self._slots[number].tokens += tokens

    def release(self, number: int, *, dirty: bool = False) -> None:
        """Gives a slot back; its text stays for others to begin with, unless its rows are ``dirty``."""
        self._clock += 1
        slot = self._slots[number]
        slot.taken, slot.used = False, self._clock
        if dirty:
            self.spoil(number)
