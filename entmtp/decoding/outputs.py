"""Outputs of the engine: step records, completions, statistics, and the output of each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from entmtp.policies.signals import Signals
from entmtp.trees.topology import Path, Topology

FinishReason = Literal["stop", "length", "cancelled", "error"]

PARTS = ("policy", "draft", "verify", "accept", "compact")
"""Parts of a step, in the order in which they run."""


@dataclass(frozen=True)
class StepRecord:
    """One step of one request.

    Attributes:
        position: new tokens before the step.
        path: the accepted path.
        draft_ms, verify_ms, accept_ms, compact_ms, policy_ms: milliseconds of each part.
        captures: parts that were captured as CUDA graphs in this step.
        is_steady: whether no part was captured or ran for the first time: all were replays, or are never captured.
    """

    position: int
    topology: Topology
    path: Path
    signals: Signals
    draft_ms: float
    verify_ms: float
    accept_ms: float
    compact_ms: float
    policy_ms: float
    captures: int
    is_steady: bool

    @property
    def gained(self) -> int:
        """New tokens of the step: the root and the accepted path, before any cut at the end."""
        return 1 + len(self.path)


@dataclass(frozen=True)
class TokenLogprobs:
    """The model's own log-probabilities at one position, before sampling parameters shape them.

    Attributes:
        chosen: of the token that was generated.
        top: the likeliest tokens with their log-probabilities, likeliest first.
    """

    chosen: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class PromptLogprobs(TokenLogprobs):
    """The same of a prompt's token, at the position of the token before it.

    Attributes:
        rank: number of tokens that are likelier, plus 1.
    """

    rank: int


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a text's tokens after a prompt.

    Attributes:
        logprobs: one per token.
        is_greedy: whether each token is the likeliest one at its position.
    """

    logprobs: list[float]
    is_greedy: bool

    @property
    def total(self) -> float:
        """Log-probability of the whole text."""
        return sum(self.logprobs)


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Log-probabilities of ``tokens [n]``, chosen from ``logits [n, vocab_size]``, with the ``count`` likeliest."""
    log_probs = logits.float().log_softmax(-1)
    chosen = log_probs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top = log_probs.topk(count, dim=-1)
    pairs = [list(zip(*row, strict=True)) for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    return [TokenLogprobs(*each) for each in zip(chosen, pairs, strict=True)]


@dataclass
class Completion:
    """The answer to a request, finished or still growing.

    Attributes:
        tokens: new tokens, the end-of-text token included where it came.
        text: text of the tokens, without special tokens and stop strings; empty if the engine has no tokenizer.
        logprobs: one entry per token, if requested.
        prompt_logprobs: one entry per scored prompt token, if requested.
        steps: one record per step; the tokens of the last may have been cut.
        finish_reason: why it ended; None while it runs. ``error`` says what went wrong.
        seconds: from the arrival to the last token. It includes ``waiting_seconds`` for a slot, then
            ``prefill_seconds`` until the prompt was read.
        first_token_seconds: from the arrival to the first token (TTFT).
        reused_tokens: prompt tokens that were in the cache already.
    """

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
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
        """Accepted tree nodes over all steps, before any cut at the end."""
        return sum(len(step.path) for step in self.steps)

    @property
    def accepted_by_depth(self) -> list[int]:
        """Steps that accepted a node at depth 1, 2, ..."""
        deepest = max((len(step.path) for step in self.steps), default=0)
        return [sum(len(step.path) > depth for step in self.steps) for depth in range(deepest)]

    @property
    def tree_counts(self) -> dict[int, int]:
        """Number of steps by tree size in nodes."""
        return dict(sorted(Counter(step.topology.nodes for step in self.steps).items()))

    @property
    def tree_shares(self) -> dict[int, float]:
        """Share of steps by tree size in nodes."""
        return {nodes: count / len(self.steps) for nodes, count in self.tree_counts.items()}

    @property
    def captures(self) -> int:
        """Parts that were captured as CUDA graphs, over all steps."""
        return sum(step.captures for step in self.steps)

    @property
    def unsteady_steps(self) -> int:
        """Steps with a part that was captured or ran for the first time, which take longer than later ones."""
        return sum(not step.is_steady for step in self.steps)

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token after the first (TPOT); 0 for a single token."""
        return (self.seconds - self.first_token_seconds) / max(1, len(self.tokens) - 1)

    def part_seconds(self, part: str) -> float:
        """Seconds over all steps of one of the ``PARTS``."""
        return sum(getattr(step, f"{part}_ms") for step in self.steps) / 1e3

    @property
    def stats(self) -> RequestStats:
        """Statistics so far."""
        return RequestStats(
            accepted=self.accepted,
            accepted_by_depth=self.accepted_by_depth,
            deepest=max((step.topology.max_depth for step in self.steps), default=0),
            tree_counts=self.tree_counts,
            part_ms={part: 1e3 * self.part_seconds(part) for part in PARTS},
            reused_tokens=self.reused_tokens,
            waiting_ms=1e3 * self.waiting_seconds,
            first_token_ms=1e3 * self.first_token_seconds,
            ms_per_token=1e3 * self.seconds_per_token,
        )


@dataclass(frozen=True)
class RequestStats:
    """Statistics of a finished request, small enough to be sent to another process.

    Attributes:
        accepted_by_depth: steps that accepted a node at depth 1, 2, ...
        deepest: depth of the deepest tree of a step.
        tree_counts: number of steps by tree size in nodes.
        part_ms: total milliseconds of all steps, by part of a step.
        reused_tokens: prompt tokens that were in the cache already.
        waiting_ms: from the arrival until a slot was free.
        first_token_ms: from the arrival to the first token (TTFT).
        ms_per_token: per token after the first (TPOT); 0 for a single token.
        method: method that generated the answer. A server adds it; an engine knows only its policy.
        task: task of the tree bank that was used; added with ``method``.
    """

    accepted: int = 0
    accepted_by_depth: list[int] = field(default_factory=list)
    deepest: int = 0
    tree_counts: dict[int, int] = field(default_factory=dict)
    part_ms: dict[str, float] = field(default_factory=dict)
    reused_tokens: int = 0
    waiting_ms: float = 0.0
    first_token_ms: float = 0.0
    ms_per_token: float = 0.0
    method: str = ""
    task: str = ""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return sum(self.tree_counts.values())

    @property
    def drafted(self) -> int:
        """Tree nodes over all steps."""
        return sum(nodes * count for nodes, count in self.tree_counts.items())


@dataclass
class RequestOutput:
    """New output of a request: of one step, or of several that were added up.

    Attributes:
        text: may come later than its tokens.
        logprobs: one entry per token, if requested.
        prompt_logprobs: one entry per scored prompt token, if requested, in the first output.
        finish_reason: why the request ended; None while it runs.
        error: what went wrong, if the reason is 'error'.
        invalid: whether the request itself was wrong, which only its text has shown.
        stats: statistics of the whole request, in its last output.
    """

    id: str
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    stats: RequestStats | None = None
    invalid: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing new."""
        return not (self.tokens or self.text or self.finish_reason)

    def add(self, following: RequestOutput) -> None:
        """Add the output that follows this one."""
        self.tokens += following.tokens
        self.text += following.text
        self.logprobs += following.logprobs
        self.prompt_logprobs += following.prompt_logprobs
        self.finish_reason, self.error, self.stats = following.finish_reason, following.error, following.stats


@dataclass(frozen=True)
class EngineStatistics:
    """State of an engine.

    Attributes:
        running, waiting: requests.
        outstanding_tokens: upper bound of the prompt and answer tokens that these requests still need.
        predicted_tokens: prediction of the same, from the lengths of the last answers.
        cache_tokens: tokens of running requests in the cache; ``cache_capacity`` is the number that fit.
        steps, tokens: since the start.
        goodput: measured tokens per millisecond of the last steps; 0 before the first.
        predicted_goodput: the policy's prediction of it; None before the first step, or if it predicts none.
    """

    running: int
    waiting: int
    outstanding_tokens: int
    predicted_tokens: float
    cache_tokens: int
    cache_capacity: int
    steps: int
    tokens: int
    goodput: float
    predicted_goodput: float | None


def check_stop(tokens: Sequence[int], limit: int, stops: frozenset[int]) -> tuple[int, FinishReason | None]:
    """Count the ``tokens`` that belong to the answer, and find why they end it; at most ``limit`` may still come."""
    for at, token in enumerate(tokens[:limit]):
        if token in stops:
            return at + 1, "stop"
    return min(len(tokens), limit), "length" if len(tokens) >= limit else None
