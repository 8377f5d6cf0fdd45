"""Steps of the whole batch, repeated request by request if one fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from entmtp.decoding.faults import is_out_of_memory
from entmtp.decoding.request import RunningRequest
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.policies.base import Policy, UndraftedPolicy

STEPS_ALONE = 64
"""Steps that each request takes alone after the batch ran out of memory, before the batch is tried again."""

_log = logging.getLogger(__name__)


class StepRetry:
    """Isolates the request that makes a step fail, and splits steps that need too much memory."""

    def __init__(self) -> None:
        self._steps_alone = 0

    def step(self, state: DecodingState, policy: Policy, requests: Sequence[RunningRequest]) -> None:
        """Decode one step of each request; an error of a request that steps alone becomes its ``failure``."""
        if self._steps_alone:
            self._steps_alone -= 1
        elif self._step_batch(state, policy, requests):
            return
        policy = UndraftedPolicy(policy) if self._steps_alone else policy
        for request in requests:
            try:
                decode_step(state, policy, [request])
            except Exception as error:
                # The traceback references tensors whose memory the next request needs.
                request.failure = error.with_traceback(None) if is_out_of_memory(error) else error

    def _step_batch(self, state: DecodingState, policy: Policy, requests: Sequence[RunningRequest]) -> bool:
        try:
            decode_step(state, policy, requests)
        except Exception as error:
            _log.warning("a step of %d requests failed, each takes its own", len(requests), exc_info=True)
            self._steps_alone = STEPS_ALONE * is_out_of_memory(error)
            return False
        return True
