"""Runner of batches: everything of a step that runs the model."""

from __future__ import annotations

import math
import time

import torch

from entmtp.decoding.batch import Batch, BatchResult, PrefillChunk
from entmtp.decoding.faults import NonFiniteLogitsError
from entmtp.decoding.outputs import logprobs_of
from entmtp.decoding.scoring import score_prompt
from entmtp.decoding.sequence import Sequence, SequenceStatus, bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.decoding.step_retry import StepRetry
from entmtp.policies.base import Policy


class Runner:
    """Reads prompts and decodes, with one policy. An error of one sequence becomes its ``failure``."""

    def __init__(self, state: DecodingState, policy: Policy) -> None:
        self.state = state
        self.policy = policy
        self._retry = StepRetry()

    def run(self, batch: Batch) -> BatchResult:
        """Read the batch's parts of prompts, then decode one step of all sequences whose prompt has been read."""
        result = BatchResult(batch)
        began = time.perf_counter()
        for chunk in batch.chunks:
            self._prefill(chunk, result)
        result.prefill_seconds = time.perf_counter() - began
        # In the order of slots, so that the step reads consecutive cache rows without a copy.
        decoding = sorted((one for one in batch.sequences if _decodes(one)), key=lambda one: one.slot)
        tokens_before = {sequence: len(sequence.tokens) for sequence in decoding}
        if decoding:
            began = time.perf_counter()
            self._retry.step(self.state, self.policy, decoding)
            result.decode_seconds = time.perf_counter() - began
        for sequence, before in tokens_before.items():
            _collect(sequence, before, result)
        return result

    def probe(self, slot: int) -> None:
        """Decode one step of a trivial prompt in a free slot; raises if model, policy or device are broken."""
        root, entropy = self.state.prefill(slot, [0])
        decode_step(self.state, self.policy, [bare_sequence(slot, self.policy, root, entropy)])

    def _prefill(self, chunk: PrefillChunk, result: BatchResult) -> None:
        sequence = chunk.sequence
        try:
            hidden = self.state.prefill_chunk(sequence.slot, chunk.tokens)
            self._score(sequence, hidden)
            sequence.prefilled += len(chunk.tokens)
            if not sequence.unread_tokens:
                self._end_prefill(sequence, result)
        except Exception as error:
            sequence.fail(error, "reading its prompt")
            result.errors.append(error)
            return
        if sequence.status is SequenceStatus.RUNNING and math.isnan(sequence.entropy):
            sequence.fail(NonFiniteLogitsError(), "reading its prompt")

    def _score(self, sequence: Sequence, hidden: torch.Tensor) -> None:
        """Add the log-probabilities of a part of the prompt, whose states are ``hidden``, if they are requested."""
        request = sequence.request
        if (count := request.params.prompt_logprobs) is not None:
            begin, first = sequence.prefilled, request.scored_from
            scored = score_prompt(self.state.backbone, hidden, request.prompt, begin, first, count)
            sequence.completion.prompt_logprobs += scored

    def _end_prefill(self, sequence: Sequence, result: BatchResult) -> None:
        """Start to decode a sequence whose prompt is read, or end it if it wants no new tokens."""
        done = sequence.completion
        done.prefill_seconds = time.perf_counter() - sequence.arrival - done.waiting_seconds
        if sequence.request.params.max_tokens:
            self._start_decoding(sequence)
        elif self.state.is_finite(sequence.slot):
            result.read.append(sequence)
        else:
            raise NonFiniteLogitsError

    def _start_decoding(self, sequence: Sequence) -> None:
        """Choose the first root of a sequence whose prompt is read."""
        backbone, request = self.state.backbone, sequence.request
        sequence.sampler.observe_prompt(request.prompt, backbone.vocab_size, backbone.device)
        logits = self.state.next_logits(sequence.slot)
        root, entropy = self.state.start(sequence.slot, logits, sequence.sampler)
        if sequence.sampler.constraint is not None and not math.isnan(entropy):
            sequence.sampler.constraint.advance([root])
        sequence.start_decoding(self.policy, root, entropy)
        if (count := request.params.logprobs) is not None:
            sequence.logprobs += logprobs_of(logits[None], [root], count)


def _collect(sequence: Sequence, before: int, result: BatchResult) -> None:
    """Add the outcome of a sequence that had ``before`` tokens to the result."""
    result.new_tokens[sequence] = sequence.tokens[before:]
    if sequence.failure is not None:
        result.errors.append(sequence.failure)
    elif math.isnan(sequence.entropy):
        sequence.fail(NonFiniteLogitsError(), "decoding it")


def _decodes(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.RUNNING and sequence.failure is None
