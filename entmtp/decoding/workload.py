"""Prediction of how long requests wait: the work ahead of them, over the speeds that were measured.

An answer's length is not known before its end. A limit of thousands of tokens says little about it, so an answer is
predicted to be as long as those that have ended, within its own limit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from entmtp.decoding.batch import BatchResult
from entmtp.decoding.sequence import Sequence
from entmtp.policies.signals import Ema

_STEPS = 64
"""Window of the moving averages of speeds, in steps."""

_ANSWERS, _FIRST_ANSWER = 16, 256
"""Window of the moving average of answers' lengths, and the length that it begins with."""


class Workload:
    """Measured speeds of an engine, and predictions by them."""

    def __init__(self) -> None:
        self._gained, self._busy, self._read_seconds = Ema(_STEPS), Ema(_STEPS), Ema(_STEPS)
        self._answer = Ema(_ANSWERS)
        self._answer.update(_FIRST_ANSWER)

    def observe(self, result: BatchResult) -> None:
        """Take in what a step read and decoded, and how long that took."""
        read = sum(len(chunk.tokens) for chunk in result.batch.chunks)
        if read and not result.errors:
            self._read_seconds.update(result.prefill_seconds / read)
        if result.new_tokens:
            self._gained.update(sum(map(len, result.new_tokens.values())))
            self._busy.update(result.decode_seconds)

    def observe_answer(self, tokens: int, *, complete: bool) -> None:
        """Take in the length of an answer. One that is not ``complete`` would have been longer than its limit."""
        if complete or tokens > self._answer.value:
            self._answer.update(tokens)

    @property
    def goodput(self) -> float:
        """New tokens per second of decoding, of all requests together; 0 before the first step."""
        return self._gained.value / self._busy.value if self._busy.value else 0.0

    def predicted_tokens(self, sequence: Sequence) -> float:
        """Prompt and answer tokens that a sequence is predicted to need still."""
        return sequence.unread_tokens + self._answer_tokens(sequence)

    def wait(self, running: Iterable[Sequence], waiting: Iterable[Sequence], slots: int) -> float:
        """Predict the seconds until a sequence after all ``waiting`` ones gets one of the ``slots``.

        The sequences in slots share the speed evenly. It is 0 before the first step.
        """
        if not self.goodput:
            return 0.0
        # A sequence ends when each one in a slot has done as much work as `done`, in seconds of the whole engine.
        ends = [self._seconds(sequence) for sequence in running]
        heapq.heapify(ends)
        seconds = done = 0.0
        for sequence in (*waiting, None):
            if len(ends) >= slots:
                first = max(done, heapq.heappop(ends))
                seconds += (first - done) * (len(ends) + 1)
                done = first
            if sequence is not None:
                heapq.heappush(ends, done + self._seconds(sequence))
        return seconds

    def _seconds(self, sequence: Sequence) -> float:
        """Seconds of the whole engine's time that a sequence is predicted to need still."""
        answer = self._answer_tokens(sequence) / self.goodput
        return sequence.unread_tokens * self._read_seconds.value + answer

    def _answer_tokens(self, sequence: Sequence) -> float:
        left = sequence.request.params.max_tokens - len(sequence.completion.tokens)
        return min(left, self._answer.value)
