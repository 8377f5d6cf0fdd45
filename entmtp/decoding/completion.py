"""What came of a request: its tokens and text, why it ended, and how its steps went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from entmtp.decoding.logprobs import TokenLogprobs
from entmtp.decoding.request import StepRecord

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass
class Completion:
    """A request, finished or on its way.

    Attributes:
        tokens: new tokens, the end-of-text token included where it came.
        text: of them, without special tokens and stop strings; empty where the engine has no tokenizer.
        logprobs: one per token, where they were asked for.
        steps: one record per step; the tokens of the last may have been cut.
        finish_reason: why it ended; None while it runs. ``error`` says what went wrong.
        seconds: from the request to the last token; ``waiting_seconds`` of them for a slot, then ``prefill_seconds``
            until its prompt was read.
        first_token_seconds: from the request until its first token came out (TTFT).
        reused_tokens: of the prompt, that lay in the cache already.
    """

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0
    reused_tokens: int = 0

    @property
    def tau(self) -> float:
        """New tokens per step, root included."""
        return len(self.tokens) / max(1, len(self.steps))

    @property
    def drafted(self) -> int:
        """Tree nodes over all steps."""
        return sum(step.topology.nodes for step in self.steps)

    @property
    def accepted(self) -> int:
        """Tree nodes that were kept, before any cut at the end."""
        return sum(len(step.path) for step in self.steps)

    @property
    def accepted_by_depth(self) -> list[int]:
        """Steps that kept a node at depth 1, 2, ..."""
        deepest = max((len(step.path) for step in self.steps), default=0)
        return [sum(len(step.path) > depth for step in self.steps) for depth in range(deepest)]

    @property
    def tree_counts(self) -> dict[int, int]:
        """Steps by their tree's nodes."""
        return dict(sorted(Counter(step.topology.nodes for step in self.steps).items()))

    @property
    def tree_shares(self) -> dict[int, float]:
        """The share of steps by their tree's nodes."""
        return {nodes: count / len(self.steps) for nodes, count in self.tree_counts.items()}

    @property
    def captures(self) -> int:
        """Parts that were captured as CUDA graphs, over all steps."""
        return sum(step.captures for step in self.steps)

    @property
    def unsettled_steps(self) -> int:
        """Steps that took longer than they will again: a part of them ran for the first time, or was captured."""
        return sum(not step.settled for step in self.steps)

    @property
    def seconds_per_token(self) -> float:
        """Behind the first token (TPOT); 0 where there is no other."""
        return (self.seconds - self.first_token_seconds) / max(1, len(self.tokens) - 1)

    def part_seconds(self, part: str) -> float:
        """Seconds over all steps of 'draft', 'verify', 'accept', 'compact' or 'policy'."""
        return sum(getattr(step, f"{part}_ms") for step in self.steps) / 1e3


def cut(tokens: Sequence[int], most: int, stops: frozenset[int]) -> tuple[int, FinishReason | None]:
    """How many of ``tokens`` count, and why an answer ends with them, if it does; ``most`` may still come."""
    for at, token in enumerate(tokens[:most]):
        if token in stops:
            return at + 1, "stop"
    return min(len(tokens), most), "length" if len(tokens) >= most else None
