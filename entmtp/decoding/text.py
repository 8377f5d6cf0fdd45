"""The text of an answer while it is written: never half a character, and never past a text that ends the answer."""

from __future__ import annotations

from collections.abc import Sequence

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder, common_length


class TextStream:
    """One answer's text.

    Attributes:
        stopped: the stop string that ended it, once one did.
    """

    def __init__(
        self, detokenizer: Detokenizer, stop: Sequence[str] = (), min_tokens: int = 0, prompt: Sequence[int] = ()
    ) -> None:
        """A stop string counts only where it ends after the first ``min_tokens`` tokens.

        ``prompt`` are tokens whose text the answer's text goes on from, as after ``/v1/completions``; none for an
        answer that begins a text of its own.
        """
        self.stopped: str | None = None
        self._decoder = IncrementalDecoder(detokenizer, prompt)
        self._stop = list(stop)
        self._min_tokens = min_tokens
        self._tokens = 0
        self._held = ""
        # Text, held and likely, of which every stop string that ends within it has been looked for.
        self._searched = ""

    def push(self, token: int) -> str:
        """Takes one more token; returns the text that is now sure to belong to the answer."""
        self._tokens += 1
        self._held += self._decoder.push(token)
        if not self._stop:
            return self._give(len(self._held))
        text = self._held + self._decoder.likely()
        if self._find(text) is not None:
            # It ends here if it really is the text of an answer that ends here.
            text = self._held + self._decoder.rest()
            if (found := self._find(text)) is not None:
                at, self.stopped = found
                return text[:at]
        self._searched = text
        return self._give(len(self._held) - self._begun())

    def finish(self) -> str:
        """Returns the text held back because a stop string or a character might have gone on."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.rest()
        if (found := self._find(text)) is not None:
            at, self.stopped = found
            return text[:at]
        return text

    def _find(self, text: str) -> tuple[int, str] | None:
        """Where in ``text`` the first stop string begins that ends after the searched part, and which it is."""
        if self._tokens <= self._min_tokens:
            return None
        searched = len(self._searched) if text.startswith(self._searched) else common_length(text, self._searched)
        found = [(text.find(stop, max(0, searched + 1 - len(stop))), stop) for stop in self._stop]
        return min((one for one in found if one[0] >= 0), default=None)

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        self._searched = self._searched[length:]
        return given

    def _begun(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0)
