"""From tokens to text as they come: never half a character, and never past a text that ends the answer."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """One answer's text.

    Attributes:
        stopped: the stop string that ended it, once one did.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = list(stop)
        self._held = ""

    def push(self, token: int) -> str:
        """Takes one more token; returns the text that is now sure to belong to the answer."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        found = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if found:
            at, self.stopped = min(found)
            return self._give(at)
        return self._give(len(self._held) - self._begun())

    def finish(self) -> str:
        """What was held back because a stop string might have begun with it."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given

    def _begun(self) -> int:
        """How many of the last characters a stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0)
