"""A request on its way through the engine: one :class:`Sequence`, from its arrival to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from entmtp.decoding.outputs import Completion, TokenLogprobs
from entmtp.decoding.request import Request
from entmtp.decoding.sampling import GREEDY, Sampler
from entmtp.decoding.text import TextStream
from entmtp.policies.base import Policy
from entmtp.policies.signals import SignalTracker
from entmtp.trees.bank import MAX_NODES


class SequenceStatus(Enum):
    """Stage of a sequence; each sequence passes them in this order."""

    WAITING = auto()
    """It has no slot yet."""
    PREFILLING = auto()
    """Its prompt is being read."""
    RUNNING = auto()
    """It decodes."""
    FINISHED = auto()


@dataclass(eq=False)
class Sequence:
    """A request with its answer and the state between its steps.

    Attributes:
        text_stream: None if the engine has no tokenizer.
        arrival: time of arrival in seconds, by ``time.perf_counter``.
        slot: cache slot; -1 while it waits.
        prefilled: prompt tokens that are in the cache.
        tracker: signals that the policy reads; set when decoding begins, as are the next three.
        policy_state: the policy's own state for this sequence.
        root: token that the model has chosen already; the next step returns it.
        entropy: nats, of the distribution that the root was chosen from.
        tokens: new tokens in the cache, so without the root. The completion's may have been cut at the answer's end.
        logprobs: of ``tokens`` and of the root, if requested.
        finite: whether all values in its cache rows are finite.
        failure: why it can't go on; ``failed_while`` names what was done then.
    """

    request: Request
    sampler: Sampler
    text_stream: TextStream | None = None
    completion: Completion = field(default_factory=Completion)
    arrival: float = field(default_factory=time.perf_counter)
    status: SequenceStatus = SequenceStatus.WAITING
    slot: int = -1
    prefilled: int = 0
    tracker: SignalTracker = field(init=False)
    policy_state: Any = field(init=False)
    root: int = field(init=False)
    entropy: float = field(init=False)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finite: bool = True
    failure: Exception | None = None
    failed_while: str = ""

    def start_decoding(self, policy: Policy, root: int, entropy: float) -> None:
        """Begin to decode from the first ``root``, which was chosen with an ``entropy`` in nats."""
        self.status, self.root, self.entropy = SequenceStatus.RUNNING, root, entropy
        self.reset_policy(policy)

    def reset_policy(self, policy: Policy) -> None:
        """Go on with a policy that knows nothing of the sequence yet."""
        self.tracker, self.policy_state = SignalTracker(policy.entropy_window), policy.start()

    def fail(self, error: Exception, doing: str) -> None:
        """Note an error that ends this sequence, and what was being done."""
        self.failure, self.failed_while = error, doing

    @property
    def node_limit(self) -> int:
        """Largest size of its trees: its own limit, or the limit of all trees."""
        return MAX_NODES if self.request.max_nodes is None else self.request.max_nodes

    @property
    def unread_tokens(self) -> int:
        """Number of prompt tokens that are still to be read."""
        return len(self.request.prompt) - self.prefilled

    @property
    def outstanding_tokens(self) -> int:
        """Upper bound of the prompt and answer tokens that it still needs."""
        return self.unread_tokens + self.request.params.max_tokens - len(self.completion.tokens)


def bare_sequence(slot: int, policy: Policy, root: int, entropy: float, sampler: Sampler | None = None) -> Sequence:
    """Make a sequence that decodes in a slot whose prompt was read without an engine, for probes and measurements.

    It is greedy without a ``sampler``.
    """
    sampler = sampler or Sampler(GREEDY)
    sequence = Sequence(Request("bare", (), sampler.params), sampler, slot=slot)
    sequence.start_decoding(policy, root, entropy)
    return sequence
