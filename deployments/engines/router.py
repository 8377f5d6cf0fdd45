"""Request router: a call goes to the replica with the longest cached prefix of its prompt, unless it is overloaded."""

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
from entmtp.decoding.request import Request

_MAX_RECENT = 4096


@dataclass
class _ReplicaState:
    """A router's knowledge of one replica.

    Attributes:
        sent: this router's running calls to the replica, as (time, tokens) by ticket.
        recent: prefix hashes of prompts sent there, latest last; the replica may not have reported them yet.
        reported_at: time of the replica's last report.
        outstanding: outstanding tokens in that report.
        cached: prefix hashes in that report.
    """

    sent: dict[object, tuple[float, int]] = field(default_factory=dict)
    recent: OrderedDict[int, None] = field(default_factory=OrderedDict)
    reported_at: float = 0.0
    outstanding: int = 0
    cached: frozenset[int] = frozenset()

    def update(self, stats: dict[str, Any]) -> None:
        """Store the replica's report if it is newer than the last one."""
        if stats and stats["at"] > self.reported_at:
            self.reported_at, self.outstanding = stats["at"], stats["outstanding_tokens"]
            self.cached = frozenset(stats["prefixes"])

    @property
    def load(self) -> int:
        """Maximum number of outstanding tokens: those reported and those sent since."""
        own = sum(tokens for _, tokens in self.sent.values())
        since = sum(tokens for at, tokens in self.sent.values() if at > self.reported_at)
        return max(own, self.outstanding + since)

    def add_recent(self, hashes: Sequence[int]) -> None:
        """Store the prefix hashes of a prompt that is sent to the replica."""
        for one in hashes:
            self.recent[one] = None
            self.recent.move_to_end(one)
        while len(self.recent) > _MAX_RECENT:
            self.recent.popitem(last=False)


def rank_replicas(loads: Sequence[int], shared: Sequence[int], imbalance: int) -> list[int]:
    """Indices of replicas, best first: most shared tokens, then least load; overloaded replicas come last.

    A replica is overloaded if its load exceeds the least load by more than ``imbalance`` tokens.
    """
    least = min(loads)
    return sorted(range(len(loads)), key=lambda at: (loads[at] > least + imbalance, -shared[at], loads[at]))


class PrefixRouter(RequestRouter):
    """Serve's request router for engines; every ingress has one for each engine."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Serve's hook for the deployment's ``request_router_kwargs``: ``imbalance_tokens``, ``queue_seconds``."""
        self._imbalance: int = kwargs["imbalance_tokens"]
        self._queue_seconds: float = kwargs["queue_seconds"]
        self._states: dict[ReplicaID, _ReplicaState] = {}
        self._replicas_since = 0.0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        if pending_request is not None:
            # Without back-off Serve would probe full replicas in a busy loop, which slows their engines.
            pending_request.routing_context.should_backoff = True
            if any(map(self._is_full, candidate_replicas)):
                self._refuse_late(pending_request)
        states = [self._state_of(replica) for replica in candidate_replicas]
        call = _call_of(pending_request)
        hashes = [] if call is None else block_hashes(call.prompt, call.cache_salt)
        shared = [
            max(shared_tokens(hashes, one.cached), shared_tokens(hashes, frozenset(one.recent))) for one in states
        ]
        best = rank_replicas([one.load for one in states], shared, self._imbalance)
        return [[candidate_replicas[at]] for at in best]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        call = _call_of(pending_request)
        if call is None:
            return
        state = self._states.setdefault(replica_id, _ReplicaState())
        state.add_recent(block_hashes(call.prompt, call.cache_salt))
        ticket = object()
        state.sent[ticket] = (time.time(), len(call.prompt) + call.params.max_tokens)
        loop = asyncio.get_running_loop()
        # Ray calls the callback in a thread of its own.
        result.add_done_callback(lambda *_: loop.call_soon_threadsafe(state.sent.pop, ticket, None))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._states.pop(replica_id, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        if not self.curr_replicas:
            self._replicas_since = time.time()
        super().update_replicas(replicas)
        for gone in self._states.keys() - {replica.replica_id for replica in replicas}:
            del self._states[gone]

    def _is_full(self, replica: RunningReplica) -> bool:
        """Whether the replica has reported that it is full.

        A replica whose node has died reports nothing; a call then waits for another replica.
        """
        running = self.replica_queue_len_cache.get(replica.replica_id)
        return running is not None and running >= replica.max_ongoing_requests

    def _refuse_late(self, pending_request: PendingRequest) -> None:
        """Refuse a call that has waited for room for ``queue_seconds``; time without any replica does not count."""
        waited = time.time() - max(pending_request.created_at, self._replicas_since)
        if waited >= self._queue_seconds and not pending_request.future.done():
            pending_request.future.set_exception(BackPressureError(num_queued_requests=1, max_queued_requests=1))

    def _state_of(self, replica: RunningReplica) -> _ReplicaState:
        state = self._states.setdefault(replica.replica_id, _ReplicaState())
        state.update(replica.routing_stats)
        return state


def _call_of(pending_request: PendingRequest | None) -> Request | None:
    """The call among a request's arguments; None for requests to other methods of a replica."""
    args = () if pending_request is None else pending_request.args
    return next((one for one in args if isinstance(one, Request)), None)
