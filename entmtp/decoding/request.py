"""A request while it runs, and what each of its steps did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from entmtp.decoding.logprobs import TokenLogprobs
from entmtp.decoding.sampling import GREEDY, Sampler
from entmtp.errors import EntMTPError
from entmtp.scheduling.signals import Signals, SignalTracker
from entmtp.settings import SamplingParams
from entmtp.trees.bank import MAX_NODES
from entmtp.trees.topology import Path, Topology


@dataclass(frozen=True)
class StepRecord:
    """One step of one request. Times are milliseconds; ``gained`` counts the root, before any cut at the end."""

    position: int
    topology: Topology
    path: Path
    signals: Signals
    draft_ms: float
    verify_ms: float
    accept_ms: float
    compact_ms: float
    policy_ms: float

    @property
    def gained(self) -> int:
        """Tokens that the step kept: the root and the accepted path."""
        return 1 + len(self.path)


class InvalidRequestError(EntMTPError):
    """A request that can't be served as it is; says which part of it is at fault."""


@dataclass(frozen=True)
class Request:
    """What someone asks for.

    Attributes:
        id: names it in errors, logs and progress; unique among those that wait or run.
        prompt: token ids.
        number: which of several answers to one prompt with one seed this is.
        prompt_number: which of several prompts with one seed this is. Each pair of numbers draws from a random stream
            of its own, so that equal prompts get different texts.
        max_nodes: of its trees, at most; the policy chooses within that. 0 is plain decoding: the heads don't run. None
            leaves it to the policy.
    """

    id: str
    prompt: Sequence[int]
    params: SamplingParams
    number: int = 0
    max_nodes: int | None = None
    prompt_number: int = 0


@dataclass
class RunningRequest:
    """A request in a cache slot.

    ``tokens`` are those that came out so far. The *root* was chosen by the model from a distribution of ``entropy``
    nats, and comes out with the next step. ``sampler`` chooses, greedily where nothing else is said.
    ``logprobs``, where they are asked for, are of ``tokens`` and of the root. ``max_nodes`` is the request's own.
    """

    slot: int
    tracker: SignalTracker
    policy_state: Any
    root: int
    entropy: float
    sampler: Sampler = field(default_factory=lambda: Sampler(GREEDY))
    tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    max_nodes: int | None = None

    @property
    def node_limit(self) -> int:
        """Nodes that each of its trees may have: its own limit, or that of all trees."""
        return MAX_NODES if self.max_nodes is None else self.max_nodes
