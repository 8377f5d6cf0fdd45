"""One step of tree decoding for a batch of requests, each with its own tree: the algorithm, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch

from entmtp.decoding.acceptance import Accepted, Outcome, greedy, sampled
from entmtp.decoding.outputs import StepRecord, TokenLogprobs, logprobs_of
from entmtp.decoding.request import RunningRequest
from entmtp.decoding.state import DecodingState
from entmtp.decoding.timers import Stopwatch
from entmtp.policies.base import Policy
from entmtp.policies.signals import Signals
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology


@torch.inference_mode()
def decode_step(state: DecodingState, policy: Policy, requests: Sequence[RunningRequest]) -> None:
    """Moves every request on by its root and the accepted path of its tree; fills in the next root.

    Each part runs through ``state.graphs`` under a key that says which kernels it needs; what may have been made
    outside of them is held where they read. What a drafter with rows of its own does is never captured, since its
    shapes change with every step. The host waits for the device once, for the outcome.

    All or nothing: where an exception ends it, out-of-memory too, every request is as it was and the step can be taken
    again; so policies work on copies of what they remember. What is made of one request's outcome is fenced: an
    exception there becomes its ``failure`` alone.
    """
    backbone, cache = state.backbone, state.cache
    run, hold = state.graphs.run, state.graphs.hold
    watch = Stopwatch(backbone.device)
    captured_before = state.graphs.captures
    with state.all_or_nothing():
        # 1. signals -> policy -> topology
        signals = [
            request.tracker.start_step(len(request.tokens), request.entropy, cache.lengths[request.slot])
            for request in requests
        ]
        slots = tuple(request.slot for request in requests)
        rows = state.rows(slots)
        remembered = [copy(request.policy_state) for request in requests]
        chosen = policy.choose(
            signals,
            remembered,
            [request.node_limit for request in requests],
            lambda drafting: state.expand([slots[at] for at in drafting], watch),
        )
        topologies = [choice.topology for choice in chosen]
        if state.heads is not None:
            state.heads.check_trees(topologies)
        trees = state.graphs.load(
            TreeBatch.of(topologies, backbone.device, rounded=state.graphs.active, rows=len(rows))
        )
        idle = rows[len(slots) :]
        kv_range = cache.kv_range(slots, trees.width, padded=trees.shape.padded, rounded=state.graphs.active, idle=idle)
        watch.mark("policy")

        # 2. the heads fill each topology with tokens, if they did not while it was expanded
        drafted = [choice.tokens for choice in chosen if choice.tokens is not None]
        if drafted:
            tokens = state.drafted(rows, trees, drafted)
        elif state.drafts_in_graphs:
            (tokens,) = run(("draft", trees.shape, rows), lambda trees: state.draft(rows, trees), trees)
        else:
            (tokens,) = state.draft(rows, trees)
        tokens = hold("tokens", tokens)
        watch.mark("draft")

        # 3. one forward pass over all nodes of all trees
        key = "verify", trees.width, kv_range
        logits, hidden = run(key, lambda trees: backbone.verify(tokens, trees, kv_range, cache), trees)
        watch.mark("verify")

        # 4. the longest accepted path is kept; its rows stay in the cache, its last state chose the next root
        samplers = [request.sampler for request in requests]
        if all(sampler.plain for sampler in samplers):
            accepted = run(
                ("accept", trees.shape, kv_range),
                lambda trees: greedy(tokens, logits, trees).checked(hidden),
                trees,
                key,
            )
        else:  # chance and penalties differ from step to step, which no captured graph may
            accepted = sampled(tokens, logits, trees, samplers).checked(hidden)
        accepted = Accepted(*map(hold, Accepted._fields, accepted))
        watch.mark("accept")
        run(("compact", trees.shape, kv_range), lambda _: state.commit(rows, tokens, hidden, accepted), trees, key)
        accepted = state.append(rows, tokens, hidden, accepted)
        watch.mark("compact")

        # 5. the host learns what came of it
        outcomes = accepted.read()[: len(requests)]
        ms = watch.split()
        if state.graphs.settled:  # what is done for the first times costs what it never will again
            policy.observe(topologies, ms)
    cache.sync_lengths(slots, [len(outcome.tokens) for outcome in outcomes])

    # 6. each request takes in its own
    for row, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
        try:
            if (count := request.sampler.params.logprobs) is not None:
                request.logprobs += _logprobs(logits, accepted, row, outcome, count)
            if not outcome.finite:
                request.finite = False
                cache.zero_free_rows(request.slot)
            captures, settled = state.graphs.captures - captured_before, state.graphs.settled
            record = _record(topologies[row], signals[row], outcome, ms, captures, settled)
            _move_on(request, outcome, remembered[row], record)
        except Exception as error:  # whatever it is, it is this request's own
            request.failure = error


def _logprobs(logits: torch.Tensor, accepted: Accepted, row: int, outcome: Outcome, count: int) -> list[TokenLogprobs]:
    """Log-probabilities of the kept tokens after the root, and of the next root."""
    kept = accepted.nodes[row, : len(outcome.tokens)]
    return logprobs_of(logits[row, kept], [*outcome.tokens[1:], outcome.root], count)


def _record(
    topology: Topology, seen: Signals, outcome: Outcome, ms: Mapping[str, float], captures: int, settled: bool
) -> StepRecord:
    path = topology.paths[outcome.node - 1] if outcome.node else ()
    times = {f"{part}_ms": time for part, time in ms.items()}
    return StepRecord(seen.position, topology, path, seen, captures=captures, is_steady=settled, **times)


def _move_on(request: RunningRequest, outcome: Outcome, policy_state: Any, record: StepRecord) -> None:
    request.policy_state = policy_state
    request.sampler.write(outcome.tokens)
    request.steps.append(record)
    request.tokens += outcome.tokens
    request.root, request.entropy = outcome.root, outcome.entropy
    request.tracker.end_step(len(outcome.tokens))
