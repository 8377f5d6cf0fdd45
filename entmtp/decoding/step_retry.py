"""Steps of the whole batch, repeated sequence by sequence if one fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence as GenericSequence

from entmtp.decoding.faults import is_out_of_memory
from entmtp.decoding.sequence import Sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.policies.base import Policy, UndraftedPolicy

STEPS_ALONE = 64
"""Steps that each sequence takes alone after the batch ran out of memory, before the batch is tried again."""

_log = logging.getLogger(__name__)


class StepRetry:
    """Isolates the sequence that makes a step fail, and splits steps that need too much memory."""

    def __init__(self) -> None:
        self._steps_alone = 0

    def step(self, state: DecodingState, policy: Policy, sequences: GenericSequence[Sequence]) -> None:
        """Decode one step of each sequence; an error of a sequence that steps alone becomes its ``failure``."""
        if self._steps_alone:
            self._steps_alone -= 1
        else:
            try:
                decode_step(state, policy, sequences)
            except Exception as error:
                _log.warning("a step of %d requests failed, each takes its own", len(sequences), exc_info=True)
                self._steps_alone = STEPS_ALONE * is_out_of_memory(error)
            else:
                return
        policy = UndraftedPolicy(policy) if self._steps_alone else policy
        for sequence in sequences:
            try:
                decode_step(state, policy, [sequence])
            except Exception as error:
                # The traceback references tensors whose memory the next sequence needs.
                sequence.fail(error.with_traceback(None) if is_out_of_memory(error) else error, "decoding it")
