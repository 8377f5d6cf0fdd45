"""The loop around the step: a prompt in, the model's own greedy text out, in chunks of accepted tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from entmtp.decoding.request import RunningRequest, StepRecord
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.scheduling.policies import Policy
from entmtp.scheduling.signals import SignalTracker
from entmtp.trees.bank import MAX_NODES


@dataclass
class Completion:
    """A finished request.

    Attributes:
        tokens: new tokens, the end-of-text token included where it came.
        steps: one record per step; the tokens of the last may have been cut.
        seconds: from the prompt to the last token; ``prefill_seconds`` of them went into the prompt.
    """

    tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    seconds: float = 0.0
    prefill_seconds: float = 0.0

    @property
    def tau(self) -> float:
        """New tokens per step, root included."""
        return len(self.tokens) / max(1, len(self.steps))

    @property
    def drafted(self) -> int:
        """Tree nodes over all steps."""
        return sum(step.topology.nodes for step in self.steps)

    def part_seconds(self, part: str) -> float:
        """Seconds over all steps of 'draft', 'verify', 'accept', 'compact' or 'policy'."""
        return sum(getattr(step, f"{part}_ms") for step in self.steps) / 1e3


class Engine:
    """Decodes one request at a time with one method (heads and policy) on one device.

    What the last request ran in, its memory and captured graphs, is kept and reused when the next one fits in it.
    """

    def __init__(self, backbone: Backbone, heads: DraftHeads | None, policy: Policy) -> None:
        self.backbone = backbone
        self.heads = heads
        self.policy = policy
        self._state: DecodingState | None = None

    def generate(self, prompt: Sequence[int], max_new_tokens: int) -> Completion:
        """Completes ``prompt`` (token ids) greedily, to an end-of-text token or ``max_new_tokens``."""
        completion = Completion()
        for _ in self.stream(prompt, max_new_tokens, completion):
            pass
        return completion

    def stream(self, prompt: Sequence[int], max_new_tokens: int, completion: Completion) -> Iterator[list[int]]:
        """Yields each step's new tokens and fills in ``completion``.

        Raises:
            EntMTPError: if the prompt is empty, ``max_new_tokens`` is below 1, or both exceed the model's window.
        """
        self._check(prompt, max_new_tokens)
        began = time.perf_counter()
        state = self._state_for(len(prompt) + max_new_tokens)
        request = self._prefill(prompt, state)
        completion.prefill_seconds = time.perf_counter() - began
        while True:
            decode_step(state, self.policy, [request])
            before = len(completion.tokens)
            completion.tokens, ended = self._cut(request.tokens, max_new_tokens, before)
            completion.steps = request.steps
            completion.seconds = time.perf_counter() - began
            yield completion.tokens[before:]
            if ended:
                return

    def _check(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        window = self.backbone.max_context
        if not prompt:
            raise EntMTPError("prompt: it has no tokens; give some text")
        if max_new_tokens < 1:
            raise EntMTPError(f"max_new_tokens: {max_new_tokens} is not accepted; ask for at least 1")
        if len(prompt) + max_new_tokens > window:
            raise EntMTPError(
                f"prompt: {len(prompt)} tokens and max_new_tokens {max_new_tokens} exceed the model's window of"
                f" {window}; shorten the prompt or ask for fewer tokens"
            )

    def _state_for(self, tokens: int) -> DecodingState:
        # The last step may overshoot by a whole tree. Powers of two, so that it seldom has to grow.
        capacity = 1 << (tokens + MAX_NODES).bit_length()
        if self._state is None or self._state.cache.capacity < capacity:
            self._state = None  # its memory first
            self._state = DecodingState(self.backbone, self.heads, slots=1, capacity=capacity)
        return self._state

    def _prefill(self, prompt: Sequence[int], state: DecodingState) -> RunningRequest:
        root, uncertainty = state.prefill(0, prompt)
        return RunningRequest(0, SignalTracker(self.policy.entropy_window), self.policy.start(), root, uncertainty)

    def _cut(self, tokens: list[int], max_new_tokens: int, begin: int) -> tuple[list[int], bool]:
        """The tokens that count, and whether the request has ended, looking at those from ``begin`` on."""
        for at in range(begin, min(len(tokens), max_new_tokens)):
            if tokens[at] in self.backbone.eos_token_ids:
                return tokens[: at + 1], True
        return tokens[:max_new_tokens], len(tokens) >= max_new_tokens
