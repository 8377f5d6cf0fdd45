"""Steps of all requests together, and of each alone where that fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from entmtp.decoding.faults import is_out_of_memory
from entmtp.decoding.request import RunningRequest
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.policies.base import Policy, UndraftedPolicy

STEPS_APART = 64
"""Steps that requests take each alone after one was too large for the memory, before another is tried together."""

_log = logging.getLogger(__name__)


class StepRetry:
    """Finds out which request is at fault, and takes steps that need too much memory in parts as small as can be."""

    def __init__(self) -> None:
        self._apart = 0

    def step(self, state: DecodingState, policy: Policy, requests: Sequence[RunningRequest]) -> None:
        """One step of each request; whoever fails alone is the one at fault, and gets that as its ``failure``."""
        if self._apart:
            self._apart -= 1
        elif self._together(state, policy, requests):
            return
        policy = UndraftedPolicy(policy) if self._apart else policy
        for request in requests:
            try:
                decode_step(state, policy, [request])
            except Exception as error:
                # A traceback would hold the memory that the next request needs.
                request.failure = error.with_traceback(None) if is_out_of_memory(error) else error

    def _together(self, state: DecodingState, policy: Policy, requests: Sequence[RunningRequest]) -> bool:
        try:
            decode_step(state, policy, requests)
        except Exception as error:
            _log.warning("a step of %d requests failed, each takes its own", len(requests), exc_info=True)
            self._apart = STEPS_APART * is_out_of_memory(error)
            return False
        return True
