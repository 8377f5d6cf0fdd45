"""Special tokens that the format of an answer is made of, put back into its text, which has no special tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.incremental_decoder import IncrementalDecoder
from entmtp.decoding.outputs import RequestOutput


class MarkerText:
    """Text of one answer with the names of some special tokens.

    Args:
        markers: names of these tokens by id.
    """

    def __init__(self, detokenizer: Detokenizer, markers: Mapping[int, str]) -> None:
        self._decoder = IncrementalDecoder(detokenizer)
        self._markers = markers
        self._decoded = self._written = 0
        # Markers that are not written yet, each with the number of the text's characters before it.
        self._pending: deque[tuple[int, str]] = deque()

    def read(self, output: RequestOutput) -> str:
        """Text of the next output with its markers, or those before it whose text came later."""
        for token in output.tokens:
            self._decoded += len(self._decoder.push(token))
            if token in self._markers:
                self._pending.append((self._decoded + len(self._decoder.rest()), self._markers[token]))
        return "".join(self._parts(output))

    def _parts(self, output: RequestOutput) -> list[str]:
        text, parts = output.text, []
        while self._pending and self._pending[0][0] <= self._written + len(text):
            at, name = self._pending.popleft()
            length = max(0, at - self._written)
            parts += [text[:length], name]
            text, self._written = text[length:], self._written + length
        self._written += len(text)
        return [*parts, text]
