"""Which replica of an engine gets a call: the one that has read most of it already, unless it has too much to do."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.engines.prefix_hash import block_hashes, shared_tokens
from deployments.protocol.messages import Call

_REMEMBERED = 4096


@dataclass
class _Known:
    """What a router knows of a replica.

    Attributes:
        sent: own calls that still run, as (time, tokens) by call.
        recent: hashes of prompts that went there, latest last; it may not have told of them yet.
        told_at, outstanding, held: what the replica told last.
    """

    sent: dict[object, tuple[float, int]] = field(default_factory=dict)
    recent: OrderedDict[int, None] = field(default_factory=OrderedDict)
    told_at: float = 0.0
    outstanding: int = 0
    held: frozenset[int] = frozenset()

    def tell(self, stats: dict[str, Any]) -> None:
        """Takes in what the replica says, if it is news."""
        if stats and stats["at"] > self.told_at:
            self.told_at, self.outstanding = stats["at"], stats["outstanding_tokens"]
            self.held = frozenset(stats["prefixes"])

    @property
    def load(self) -> int:
        """Tokens that it may still have to read and write: what it told and what went there since."""
        mine = sum(tokens for _, tokens in self.sent.values())
        since = sum(tokens for at, tokens in self.sent.values() if at > self.told_at)
        return max(mine, self.outstanding + since)

    def remember(self, hashes: Sequence[int]) -> None:
        """A prompt goes there."""
        for one in hashes:
            self.recent[one] = None
            self.recent.move_to_end(one)
        while len(self.recent) > _REMEMBERED:
            self.recent.popitem(last=False)


def ranking(loads: Sequence[int], shared: Sequence[int], imbalance: int) -> list[int]:
    """Replicas by number, best first: most shared tokens, then least load; the overloaded behind all others."""
    least = min(loads)
    return sorted(range(len(loads)), key=lambda at: (loads[at] > least + imbalance, -shared[at], loads[at]))


class PrefixRouter(RequestRouter):
    """Serve's request router for engines; every ingress has one per engine."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Serve's hook for what the deployment's configuration says: ``imbalance_tokens``, ``queue_seconds``."""
        self._imbalance: int = kwargs["imbalance_tokens"]
        self._queue_seconds: float = kwargs["queue_seconds"]
        self._known: dict[ReplicaID, _Known] = {}
        self._replicas_since = 0.0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        if pending_request is not None:
            # Or Serve would ask replicas that are full for room again at once, for ever, at the cost of their engines.
            pending_request.routing_context.should_backoff = True
            if any(map(self._is_full, candidate_replicas)):
                self._refuse_late(pending_request)
        known = [self._of(replica) for replica in candidate_replicas]
        call = _call_of(pending_request)
        hashes = [] if call is None else block_hashes(call.prompt, call.cache_salt)
        shared = [max(shared_tokens(hashes, one.held), shared_tokens(hashes, frozenset(one.recent))) for one in known]
        best = ranking([one.load for one in known], shared, self._imbalance)
        return [[candidate_replicas[at]] for at in best]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        call = _call_of(pending_request)
        if call is None:
            return
        known = self._known.setdefault(replica_id, _Known())
        known.remember(block_hashes(call.prompt, call.cache_salt))
        ticket = object()
        known.sent[ticket] = (time.time(), call.tokens)
        loop = asyncio.get_running_loop()
        # It is called from a thread of Ray's.
        result.add_done_callback(lambda *_: loop.call_soon_threadsafe(known.sent.pop, ticket, None))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._known.pop(replica_id, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        if not self.curr_replicas:
            self._replicas_since = time.time()
        super().update_replicas(replicas)
        for gone in self._known.keys() - {replica.replica_id for replica in replicas}:
            del self._known[gone]

    def _is_full(self, replica: RunningReplica) -> bool:
        """Whether it has said so; one whose node has died says nothing, and then a call waits for another replica."""
        running = self.replica_queue_len_cache.get(replica.replica_id)
        return running is not None and running >= replica.max_ongoing_requests

    def _refuse_late(self, pending_request: PendingRequest) -> None:
        """A call that has waited for room long enough is refused; for the start of a replica it may wait longer."""
        waited = time.time() - max(pending_request.created_at, self._replicas_since)
        if waited >= self._queue_seconds and not pending_request.future.done():
            pending_request.future.set_exception(BackPressureError(num_queued_requests=1, max_queued_requests=1))

    def _of(self, replica: RunningReplica) -> _Known:
        known = self._known.setdefault(replica.replica_id, _Known())
        known.tell(replica.routing_stats)
        return known


def _call_of(pending_request: PendingRequest | None) -> Call | None:
    """The call that a request carries; other calls of a replica carry none."""
    given = () if pending_request is None else pending_request.args
    return next((one for one in given if isinstance(one, Call)), None)
