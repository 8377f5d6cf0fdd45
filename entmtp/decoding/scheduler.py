"""Scheduler of continuous batching: which sequences have which slots, and what each step does for them.

It moves cache rows between slots (reused prefixes, compaction), but runs neither the model nor the heads.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from entmtp.decoding.batch import Batch, BatchResult, PrefillChunk
from entmtp.decoding.faults import description, is_out_of_memory
from entmtp.decoding.output_processor import make_output
from entmtp.decoding.outputs import FinishReason, RequestOutput
from entmtp.decoding.request import InvalidRequestError
from entmtp.decoding.sequence import Sequence, SequenceStatus
from entmtp.decoding.slots import Slots
from entmtp.decoding.state import DecodingState
from entmtp.decoding.workload import Workload
from entmtp.errors import EntMTPError
from entmtp.settings import EngineSettings

_log = logging.getLogger(__name__)


class EngineFullError(EntMTPError):
    """Raised if a request would wait for too long, or too many wait already.

    Attributes:
        retry_seconds: predicted time after which the request would be taken.
        own: whether its own limit or priority is the reason, so that others may be taken.
    """

    def __init__(self, message: str, retry_seconds: int, *, own: bool = False) -> None:
        super().__init__(message)
        self.retry_seconds, self.own = retry_seconds, own


class Scheduler:
    """Queue of waiting sequences, and the slots of the others: by priority, then first come, first served.

    Attributes:
        waiting: sequences without a slot, in the order in which they will get one.
        running: sequences with a slot, in the order of arrival.
        slots: allocation of the cache's slots.
        workload: predicts how long a request waits.
    """

    def __init__(self, state: DecodingState, settings: EngineSettings) -> None:
        self._state = state
        self.settings = settings
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.slots = Slots(state.cache, settings.prefix_reuse)
        self.workload = Workload()

    def set_limits(self, settings: EngineSettings) -> None:
        """Continue with other limits.

        Raises:
            EntMTPError: if they would need other memory.
        """
        for name in ("slots", "context"):
            if (new := getattr(settings, name)) != (old := getattr(self.settings, name)):
                raise EntMTPError(f"{name}: {new} needs other memory than {old}; start the engine anew for that")
        self.settings = settings
        self.slots.reuse = settings.prefix_reuse

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            EngineFullError: if it would wait for longer than it or the engine allows, or too many wait already.
        """
        ahead = bisect_right(self.waiting, sequence.request.turn, key=lambda one: one.request.turn)
        wait = self.workload.wait(self.running, list(self.waiting)[:ahead], self.settings.slots)
        own = sequence.request.max_wait_seconds
        limit = self.settings.max_wait_seconds
        if len(self.waiting) >= self.settings.max_waiting + self.settings.slots - len(self.running):
            next_seconds = max(1, math.ceil(wait / (1 + len(self.waiting))))
            raise EngineFullError(f"engine: {len(self.waiting)} requests wait already; try again later", next_seconds)
        if wait > limit:
            message = f"engine: a request would wait for {wait:.0f} s, longer than {limit:g} s; try again later"
            raise EngineFullError(message, math.ceil(wait - limit), own=sequence.request.priority > 0)
        if own is not None and wait > own:
            message = f"it would wait for {wait:.0f} s, longer than its {own:g} s; try again later, or give it longer"
            raise EngineFullError(message, math.ceil(wait - own), own=True)
        self.waiting.insert(ahead, sequence)

    def cancel(self, id: str) -> None:
        """End the sequence of a request, if it waits or runs; its slot is free at once."""
        for sequence in [*self.waiting, *self.running]:
            if sequence.request.id == id:
                self._finish(sequence, "cancelled")

    def schedule(self) -> Batch:
        """Give free slots to waiting sequences, and plan what the next step does."""
        failed = self._admit()
        chunks = self._plan_prefill()
        complete = {chunk.sequence for chunk in chunks if len(chunk.tokens) == chunk.sequence.unread_tokens}
        decoding = [one.slot for one in self.running if one.status is SequenceStatus.RUNNING or one in complete]
        failed += self._compact_slots(decoding)
        return Batch(
            [sequence for sequence in self.running if sequence.failure is None],
            [chunk for chunk in chunks if chunk.sequence.failure is None],
            failed,
        )

    def update(self, result: BatchResult) -> list[RequestOutput]:
        """Take in what came of a batch; returns the outputs of its sequences."""
        self._update_slots(result)
        self.workload.observe(result)
        outputs = [self._end_failed(sequence) for sequence in result.batch.failed]
        for sequence in result.batch.sequences:
            if sequence.failure is not None:
                outputs.append(self._end_failed(sequence))
            elif sequence in result.new_tokens or sequence in result.read:
                outputs.append(self._process(sequence))
        return outputs

    @contextmanager
    def spare_slot(self) -> Iterator[int]:
        """Lend out a free slot; its cache rows count as dirty afterwards."""
        slot, _ = self.slots.acquire([0])
        try:
            yield slot
        finally:
            self.slots.release(slot, dirty=True)

    def _admit(self) -> list[Sequence]:
        """Give free slots to waiting sequences; returns those for which that failed."""
        refused = []
        while self.waiting and self.slots.free:
            sequence = self.waiting.popleft()
            try:
                self._assign_slot(sequence)
            except Exception as error:  # of any type: it ends this sequence alone
                sequence.fail(error, "assigning it a slot")
                refused.append(sequence)
        return refused

    def _assign_slot(self, sequence: Sequence) -> None:
        request, done = sequence.request, sequence.completion
        sequence.slot, sequence.prefilled = self.slots.acquire(
            request.prompt, request.cache_salt, request.reusable_tokens
        )
        sequence.status = SequenceStatus.PREFILLING
        done.waiting_seconds = time.perf_counter() - sequence.arrival
        done.reused_tokens = sequence.prefilled
        self.running.append(sequence)

    def _plan_prefill(self) -> list[PrefillChunk]:
        """Parts of prompts, up to ``settings.prefill_tokens`` tokens; those of the oldest sequence first."""
        budget, chunks = self.settings.prefill_tokens, []
        for sequence in self.running:
            if sequence.status is SequenceStatus.PREFILLING and budget:
                tokens = sequence.request.prompt[sequence.prefilled : sequence.prefilled + budget]
                chunks.append(PrefillChunk(sequence, tokens))
                budget -= len(tokens)
        return chunks

    def _compact_slots(self, decoding: list[int]) -> list[Sequence]:
        """Move the contents of the ``decoding`` slots into the first ones; returns sequences for which that failed.

        A step reads consecutive slots without a copy, and then needs one graph per number of sequences.
        """
        for one, other in self.slots.compaction_swaps(decoding):
            moved = {one: other, other: one}
            affected = [sequence for sequence in self.running if sequence.slot in moved]
            try:
                self._state.swap(one, other)
            except Exception as error:
                if is_out_of_memory(error):  # nothing has moved yet, and compaction is for speed only
                    return []
                for sequence in affected:
                    sequence.fail(error, "moving it to another slot")
                self.slots.mark_dirty(one)
                self.slots.mark_dirty(other)
                return affected
            self.slots.swap(one, other)
            for sequence in affected:
                sequence.slot = moved[sequence.slot]
        return []

    def _update_slots(self, result: BatchResult) -> None:
        """Note which tokens the step has added to the slots."""
        for chunk in result.batch.chunks:
            self.slots.append(chunk.sequence.slot, chunk.tokens)
        for sequence, tokens in result.new_tokens.items():
            self.slots.append(sequence.slot, tokens)

    def _process(self, sequence: Sequence) -> RequestOutput:
        """Output of a sequence for its last step; an exception in its text ends this sequence alone."""
        try:
            output = make_output(sequence)
        except Exception as error:
            sequence.fail(error, "making its text")
            return self._end_failed(sequence)
        if output.finish_reason:
            self._finish(sequence, output.finish_reason)
        return output

    def _end_failed(self, sequence: Sequence) -> RequestOutput:
        assert sequence.failure is not None
        id, doing = sequence.request.id, sequence.failed_while
        _log.error("request %s: %s failed", id, doing, exc_info=sequence.failure)
        error = description(sequence.failure, doing)
        self._finish(sequence, "error", error)
        invalid = isinstance(sequence.failure, InvalidRequestError)
        return RequestOutput(id, finish_reason="error", error=error, stats=sequence.completion.stats, invalid=invalid)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        sequence.completion.finish_reason, sequence.completion.error = reason, error
        if reason in {"stop", "length"}:
            self.workload.observe_answer(len(sequence.completion.tokens), complete=reason == "stop")
        if sequence in self.running:
            self.running.remove(sequence)
            self.slots.release(sequence.slot, dirty=error is not None or not self._is_finite(sequence))
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED

    def _is_finite(self, sequence: Sequence) -> bool:
        """Whether all cache rows of its slot are finite; False if that can't be found out."""
        if sequence.status is SequenceStatus.RUNNING:
            return sequence.finite
        try:
            unread = sequence.prefilled == sequence.completion.reused_tokens
            return unread or self._state.is_finite(sequence.slot)
        except RuntimeError:
            return False
