"""One step of tree decoding for a batch of requests, each with its own tree: the algorithm, on one screen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entmtp.decoding.acceptance import Accepted, Outcome, greedy, sampled
from entmtp.decoding.logprobs import logprobs_of
from entmtp.decoding.request import RunningRequest, StepRecord
from entmtp.decoding.state import DecodingState
from entmtp.decoding.stopwatch import Stopwatch
from entmtp.scheduling.policies import Policy
from entmtp.trees.batch import TreeBatch


@torch.inference_mode()
def decode_step(state: DecodingState, policy: Policy, requests: Sequence[RunningRequest]) -> None:
    """Moves every request on by its root and the accepted path of its tree; fills in the next root.

    Each part runs through ``state.graphs`` under a key that says which kernels it needs; what may have been made
    outside of them is held where they read. What heads with a memory do is never captured, since its shapes change with
    every step. The host waits for the device once, for the outcome.
    """
    backbone, cache = state.backbone, state.cache
    run, hold = state.graphs.run, state.graphs.hold
    watch = Stopwatch(backbone.device)

    # 1. signals -> policy -> topology
    signals = [request.tracker.start_step(len(request.tokens), request.entropy) for request in requests]
    slots = tuple(request.slot for request in requests)
    rows = state.rows(slots)
    chosen = policy.choose(
        signals,
        [request.policy_state for request in requests],
        [request.node_limit for request in requests],
        lambda drafting: state.growth([slots[at] for at in drafting], watch),
    )
    topologies = [choice.topology for choice in chosen]
    if state.heads is not None:
        state.heads.check_trees(topologies)
    trees = state.graphs.load(TreeBatch.of(topologies, backbone.device, rounded=state.graphs.active, rows=len(rows)))
    idle = rows[len(slots) :]
    span = cache.span(slots, trees.width, padded=trees.shape.padded, rounded=state.graphs.active, idle=idle)
    watch.mark("policy")

    # 2. the heads fill each topology with tokens, from the state that chose the root, if they did not as it grew
    grown = [choice.tokens for choice in chosen if choice.tokens is not None]
    if grown:
        tokens = state.grown(rows, trees, grown)
    elif state.memory is not None:
        (tokens,) = state.draft(rows, trees)
    else:
        (tokens,) = run(("draft", trees.shape, rows), lambda trees: state.draft(rows, trees), trees)
    tokens = hold("tokens", tokens)
    watch.mark("draft")

    # 3. one forward pass over all nodes of all trees
    key = "verify", trees.width, span
    logits, hidden = run(key, lambda trees: backbone.verify(tokens, trees, span, cache), trees)
    watch.mark("verify")

    # 4. the longest accepted path is kept; its rows stay in the cache, its last state chose the next root
    samplers = [request.sampler for request in requests]
    if all(sampler.plain for sampler in samplers):
        accepted = run(("accept", trees.shape, span), lambda trees: greedy(tokens, logits, trees), trees)
    else:  # chance and penalties differ from step to step, which no captured graph may
        accepted = sampled(tokens, logits, trees, samplers)
    accepted = Accepted(*map(hold, Accepted._fields, accepted))
    watch.mark("accept")
    run(("compact", trees.shape, span), lambda _: state.keep(rows, hidden, accepted), trees)
    state.remember(rows, tokens, hidden, accepted)
    watch.mark("compact")

    # 5. the host learns what came of it
    outcomes = accepted.read()[: len(requests)]
    cache.learn(slots, [len(outcome.tokens) for outcome in outcomes])
    ms = watch.split()
    if state.graphs.settled:  # what is done for the first times costs what it never will again
        policy.observe(topologies, ms)
    for row, (request, seen, topology, outcome) in enumerate(zip(requests, signals, topologies, outcomes, strict=True)):
        ranks = topology.paths[outcome.node - 1] if outcome.node else ()
        request.steps.append(
            StepRecord(seen.position, topology, ranks, seen, **{f"{part}_ms": time for part, time in ms.items()})
        )
        if (count := request.sampler.params.logprobs) is not None:
            kept = accepted.nodes[row, : len(outcome.tokens)]
            request.logprobs += logprobs_of(logits[row, kept], [*outcome.tokens[1:], outcome.root], count)
        _move_on(request, outcome)


def _move_on(request: RunningRequest, outcome: Outcome) -> None:
    request.tokens += outcome.tokens
    request.sampler.write(outcome.tokens)
    request.root, request.entropy = outcome.root, outcome.entropy
    request.tracker.end_step(len(outcome.tokens))
