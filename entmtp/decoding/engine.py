"""The loop around the step: a prompt in, the model's own greedy text out, in chunks of accepted tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from entmtp.decoding.request import RunningRequest, StepRecord
from entmtp.decoding.step import decode_step
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.cache import TreeCache
from entmtp.scheduling.policies import Policy
from entmtp.scheduling.signals import SignalTracker, entropy
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

    The cache of the last request is kept and reused when the next one fits in it.
    """

    def __init__(self, backbone: Backbone, heads: DraftHeads | None, policy: Policy) -> None:
        self.backbone = backbone
        self.heads = heads
        self.policy = policy
        self._cache: TreeCache | None = None

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
        cache = self._cache_for(len(prompt) + max_new_tokens)
        request = self._prefill(prompt, cache)
        completion.prefill_seconds = time.perf_counter() - began
        while True:
            decode_step(self.backbone, self.heads, self.policy, cache, [request])
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

    def _cache_for(self, tokens: int) -> TreeCache:
        # The last step may overshoot by a whole tree.
        capacity = -(-(tokens + MAX_NODES + 1) // 256) * 256
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self.backbone.new_cache(slots=1, capacity=capacity)
        self._cache.release(0)
        return self._cache

    def _prefill(self, prompt: Sequence[int], cache: TreeCache) -> RunningRequest:
        hidden = self.backbone.prefill(prompt, 0, cache)[-1]
        with torch.inference_mode():
            logits = self.backbone.logits(hidden)
            root, uncertainty = int(logits.argmax()), float(entropy(logits))
        tracker = SignalTracker(self.policy.entropy_window)
        return RunningRequest(0, tracker, self.policy.start(), root, hidden, uncertainty)

    def _cut(self, tokens: list[int], max_new_tokens: int, begin: int) -> tuple[list[int], bool]:
        """The tokens that count, and whether the request has ended, looking at those from ``begin`` on."""
        for at in range(begin, min(len(tokens), max_new_tokens)):
            if tokens[at] in self.backbone.eos_token_ids:
                return tokens[: at + 1], True
        return tokens[:max_new_tokens], len(tokens) >= max_new_tokens
