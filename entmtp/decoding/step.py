"""One step of tree decoding for a batch of sequences, each with its own tree: the whole algorithm on one screen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as GenericSequence
from copy import copy
from functools import partial
from typing import Any

import torch

from entmtp.decoding.acceptance import Accepted, Outcome, accept_greedy_fused, accept_sampled
from entmtp.decoding.constrained_drafts import drafts_of
from entmtp.decoding.outputs import StepRecord, TokenLogprobs, logprobs_of
from entmtp.decoding.sequence import Sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.timers import Stopwatch
from entmtp.policies.base import Policy
from entmtp.policies.signals import Signals
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology


@torch.inference_mode()
def decode_step(state: DecodingState, policy: Policy, sequences: GenericSequence[Sequence]) -> None:
    """Advance every sequence by its root and the accepted path of its tree, and set its next root.

    Each part runs through ``state.graphs`` under a key that names the kernels it needs. Tensors that may have been made
    outside of a graph are copied to static buffers before a graph reads them. A drafter with a draft cache is never
    captured, since its shapes change with every step. The host waits for the device once, for the outcome.

    The step is all or nothing: if an exception ends it, out of memory included, no sequence has changed and the step
    can be repeated. So policies work on copies of their per-sequence state. An exception while one sequence's outcome
    is processed becomes the ``failure`` of that sequence and affects no other.
    """
    backbone, cache = state.backbone, state.cache
    run, to_static_buffer = state.graphs.run, state.graphs.to_static_buffer
    watch = Stopwatch(backbone.device)
    captured_before = state.graphs.captures
    with state.all_or_nothing():
        # 1. signals -> policy -> topology
        signals = [
            sequence.tracker.start_step(len(sequence.tokens), sequence.entropy, cache.lengths[sequence.slot])
            for sequence in sequences
        ]
        slots = tuple(sequence.slot for sequence in sequences)
        batch_slots = state.batch_slots(slots)
        policy_states = [copy(sequence.policy_state) for sequence in sequences]
        drafts = drafts_of(sequences, lambda at: state.expand([slots[one] for one in at], watch), state.levels)
        chosen = policy.choose(signals, policy_states, drafts.limits, drafts.begin)
        if state.heads is not None:
            state.heads.check_trees([choice.topology for choice in chosen])
        chosen = drafts.complete(chosen, policy, signals)
        topologies = [choice.topology for choice in chosen]
        trees = state.graphs.stage_inputs(
            TreeBatch.of(topologies, backbone.device, rounded=state.graphs.active, rows=len(batch_slots))
        )
        idle = batch_slots[len(slots) :]
        kv_range = cache.kv_range(slots, trees.width, padded=trees.shape.padded, rounded=state.graphs.active, idle=idle)
        watch.mark("policy")

        # 2. the heads fill each topology with tokens, if they did not while it was expanded
        drafted = [choice.tokens for choice in chosen if choice.tokens is not None]
        if drafted:
            tokens = state.fill_trees(batch_slots, trees, drafted)
        elif state.drafts_in_graphs:
            (tokens,) = run(("draft", trees.shape, batch_slots), lambda trees: state.draft(batch_slots, trees), trees)
        else:
            (tokens,) = state.draft(batch_slots, trees)
        tokens = to_static_buffer("tokens", tokens)
        watch.mark("draft")

        # 3. one forward pass over all nodes of all trees
        key = "verify", trees.width, kv_range
        logits, hidden, features = run(key, partial(state.verify, tokens, kv_range), trees)
        watch.mark("verify")

        # 4. the longest accepted path is committed; its rows stay in the cache, its last state chose the next root
        samplers = [sequence.sampler for sequence in sequences]
        if not all(sampler.is_plain_greedy for sampler in samplers):
            # Random numbers and penalties change with every step, so a captured graph would repeat old ones.
            accepted = accept_sampled(tokens, logits, trees, samplers).with_finite_check(hidden)
        elif state.is_fused:
            accepted = accept_greedy_fused(tokens, logits, hidden, trees)
        else:
            accepted = run(
                ("accept", trees.shape, kv_range),
                lambda trees: state.accept_greedy(tokens, logits, hidden, trees),
                trees,
                key,
            )
        accepted = Accepted(*map(to_static_buffer, Accepted._fields, accepted))
        watch.mark("accept")
        run(
            ("compact", trees.shape, kv_range),
            lambda _: state.commit(batch_slots, tokens, features, accepted),
            trees,
            key,
        )
        accepted = state.append(batch_slots, tokens, features, accepted)
        watch.mark("compact")

        # 5. the host learns what came of it
        outcomes = accepted.to_host()[: len(sequences)]
        ms = watch.split()
        if state.graphs.is_steady and not drafts.constrained:  # skip warm-up and capture steps, and others' trees
            policy.observe(topologies, ms)
    cache.sync_lengths(slots, [len(outcome.tokens) for outcome in outcomes])

    # 6. each sequence is advanced by its own outcome
    for row, (sequence, outcome) in enumerate(zip(sequences, outcomes, strict=True)):
        try:
            if (count := sequence.request.params.logprobs) is not None:
                sequence.logprobs += _logprobs(logits, accepted, row, outcome, count)
            if not outcome.finite:
                sequence.finite = False
                cache.zero_free_rows(sequence.slot)
            captures, is_steady = state.graphs.captures - captured_before, state.graphs.is_steady
            record = _record(topologies[row], signals[row], outcome, ms, captures, is_steady)
            _advance(sequence, outcome, policy_states[row], record)
        except Exception as error:  # of any type: it is caused by this sequence alone
            sequence.fail(error, "decoding it")


def _logprobs(logits: torch.Tensor, accepted: Accepted, row: int, outcome: Outcome, count: int) -> list[TokenLogprobs]:
    """Log-probabilities of the accepted tokens after the root, and of the next root."""
    path = accepted.nodes[row, : len(outcome.tokens)]
    return logprobs_of(logits[row, path], [*outcome.tokens[1:], outcome.root], count)


def _record(
    topology: Topology, signals: Signals, outcome: Outcome, ms: Mapping[str, float], captures: int, is_steady: bool
) -> StepRecord:
    path = topology.paths[outcome.node - 1] if outcome.node else ()
    times = {f"{part}_ms": time for part, time in ms.items()}
    return StepRecord(signals.position, topology, path, signals, captures=captures, is_steady=is_steady, **times)


def _advance(sequence: Sequence, outcome: Outcome, policy_state: Any, record: StepRecord) -> None:
    sequence.policy_state = policy_state
    sequence.sampler.observe_tokens(outcome.tokens)
    if sequence.sampler.constraint is not None and not math.isnan(outcome.entropy):
        sequence.sampler.constraint.advance([*outcome.tokens[1:], outcome.root])
    sequence.completion.steps.append(record)
    sequence.tokens += outcome.tokens
    sequence.root, sequence.entropy = outcome.root, outcome.entropy
    sequence.tracker.end_step(len(outcome.tokens))
