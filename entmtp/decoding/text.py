"""Streaming of an answer's text: never half a character, and never past a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder, common_length


class TextStream:
    """Text stream of one answer.

    Attributes:
        stopped: the stop string that ended the answer; None before.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        prompt: Sequence[int] = (),
        *,
        include_stop: bool = False,
    ) -> None:
        """A stop string counts only where it ends after the first ``min_tokens`` tokens.

        ``include_stop`` makes it a part of the answer.

        ``prompt`` holds the tokens whose text the answer goes on from, as with ``/v1/completions``. It is empty for an
        answer that begins a text of its own.
        """
        self.stopped: str | None = None
        self._decoder = IncrementalDecoder(detokenizer, prompt)
        self._stop = list(stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._tokens = 0
        # Final text that is not returned yet, since a stop string may begin in it.
        self._pending = ""
        # Beginning of the text after the returned part in which every stop string has been searched for.
        self._searched = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that now certainly belongs to the answer."""
        self._tokens += 1
        self._pending += self._decoder.push(token)
        if not self._stop:
            return self._release(len(self._pending))
        text = self._pending + self._decoder.likely()
        if self._find_stop(text) is not None:
            # The answer ends here only if the text of an answer that ends here has the stop string, too.
            text = self._pending + self._decoder.rest()
            if (found := self._find_stop(text)) is not None:
                return self._end_at(text, *found)
        self._searched = text
        return self._release(len(self._pending) - self._partial_stop_length())

    def finish(self) -> str:
        """End the answer; returns the pending text, up to a stop string in it."""
        if self.stopped:
            return ""
        text = self._pending + self._decoder.rest()
        if (found := self._find_stop(text)) is not None:
            return self._end_at(text, *found)
        return text

    def _end_at(self, text: str, at: int, stop: str) -> str:
        """End the answer at a stop string; returns the ``text`` before it, or with it."""
        self.stopped = stop
        return text[: at + len(stop) * self._include_stop]

    def _find_stop(self, text: str) -> tuple[int, str] | None:
        """Begin and string of the first stop string in ``text`` that ends after the searched part."""
        if self._tokens <= self._min_tokens:
            return None
        searched = len(self._searched) if text.startswith(self._searched) else common_length(text, self._searched)
        found = [(text.find(stop, max(0, searched + 1 - len(stop))), stop) for stop in self._stop]
        return min((one for one in found if one[0] >= 0), default=None)

    def _release(self, length: int) -> str:
        released, self._pending = self._pending[:length], self._pending[length:]
        self._searched = self._searched[length:]
        return released

    def _partial_stop_length(self) -> int:
        """Length of the longest suffix of the pending text that is a prefix of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        lengths = range(min(longest, len(self._pending)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._pending[-n:]) for stop in self._stop)), 0)
