"""Values that are not finite end their own request and leave a clean slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from entmtp.decoding.acceptance import Accepted, Outcome, accept_greedy
from entmtp.decoding.request import Request
from entmtp.decoding.sequence import SequenceStatus
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.kernels import compiled
from entmtp.settings import SamplingParams
from entmtp.trees.batch import TreeBatch
from tests.helpers.faulty_engines import SLOTS, check, engine_of, run, serve
from tests.helpers.hydra_plus_plus_heads import random_hydra_plus_plus_heads
from tests.helpers.small_cases import SMALL_VOCAB, small_heads, small_prompt
from tests.helpers.tiny_models import TREES, greedy


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("kind", ["hydra", "prefix"])
def test_a_slot_with_non_finite_values_is_clean_for_the_next(kind: str, captured: bool, backbone: Backbone) -> None:
    heads = small_heads("hydra", backbone) if kind == "hydra" else random_hydra_plus_plus_heads(backbone)
    engine = engine_of(backbone, heads, "sequence", captured)
    expected = serve(engine)
    state = engine.runner.state
    for _ in range(SLOTS):
        bad = engine.submit(Request("bad", small_prompt(30), SamplingParams(temperature=0.0, max_tokens=9)))
        good = engine.submit(Request("good", small_prompt(3), SamplingParams(temperature=0.0, max_tokens=9)))
        while not engine.idle and not any(
            one.status is SequenceStatus.RUNNING for one in engine.scheduler.running if one.request.id == "bad"
        ):
            engine.step()
        (sequence,) = [one for one in engine.scheduler.running if one.request.id == "bad"]
        for pool in state.cache.pools.values():
            pool[:, sequence.slot] = torch.nan
        run(engine)
        assert bad.finish_reason == "error"
        assert "not numbers" in str(bad.error)
        assert good.tokens == greedy(backbone.model, small_prompt(3), 9)
    for _ in range(2):
        assert check(engine, serve(engine), expected, "used again") == 0


def test_a_cancelled_prompt_whose_states_are_not_numbers_leaves_a_clean_slot(
    backbone: Backbone, heads: DraftHeads
) -> None:
    engine = engine_of(backbone, heads, "sequence")
    expected = serve(engine)
    engine.submit(Request("long", small_prompt(30), SamplingParams(max_tokens=3)))
    engine.step()
    (sequence,) = engine.scheduler.running
    state = engine.runner.state
    for pool in state.cache.pools.values():
        pool[:, sequence.slot] = torch.nan
    engine.step()
    engine.cancel("long")
    assert check(engine, serve(engine), expected, "used again") == 0


@pytest.mark.parametrize("captured", [False, True])
def test_a_rejected_guess_that_is_not_a_number_leaves_no_trace(
    captured: bool, backbone: Backbone, heads: DraftHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serve(engine_of(backbone, heads, "sequence", captured))
    engine = engine_of(backbone, heads, "sequence", captured)
    state = engine.runner.state
    poisoned = 0
    read = Accepted.to_host

    def poisoned_read(accepted: Accepted) -> list[Outcome]:
        """Set all cache rows after the accepted ones to NaN, as if the forward pass had written them."""
        nonlocal poisoned
        outcomes = read(accepted)
        for row, outcome in enumerate(outcomes):
            slot = state.cache.slot_mapping.kv_range.slots[row]
            width = state.cache.slot_mapping.cache_rows.shape[1]
            if outcome.tokens and outcome.node < width - 1:
                begin = state.cache.lengths[slot] + len(outcome.tokens) + 1
                for pool in state.cache.pools.values():
                    pool[:, slot, :, begin:] = torch.nan
                    pool[:, slot, :, 0] = torch.nan
                outcomes[row] = replace(outcome, finite=False)
                poisoned += 1
        return outcomes

    monkeypatch.setattr(Accepted, "to_host", poisoned_read)
    assert check(engine, serve(engine), expected, "poisoned") == 0
    assert poisoned > 5
    monkeypatch.undo()
    assert check(engine, serve(engine), expected, "used again") == 0


def test_heads_whose_states_are_not_finite_leave_a_clean_slot(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(backbone, random_hydra_plus_plus_heads(backbone), "static")
    expected = serve(engine)
    state = engine.runner.state
    assert state.drafter is not None
    drafter, append = state.drafter, state.drafter.append

    def broken(slots: tuple[int, ...], *args: Any) -> None:
        append(slots, *args)
        drafter.states[list(slots)] = torch.nan

    monkeypatch.setattr(drafter, "append", broken)
    assert check(engine, serve(engine), expected, "heads") == 0
    assert engine.cached_prefixes == []  # the next requests find cleared slots
    monkeypatch.undo()
    assert check(engine, serve(engine), expected, "used again") == 0


def test_a_pass_reports_states_that_are_not_numbers(backbone: Backbone, heads: DraftHeads) -> None:
    hidden = torch.zeros(3, 4, backbone.hidden_size)
    hidden[1, 3, 5] = torch.nan
    hidden[2, 0, 0] = torch.inf
    trees = TreeBatch.of([TREES["chain"]] * 3)
    accepted = accept_greedy(torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, SMALL_VOCAB), trees)
    finite_checks = [accepted.with_finite_check]
    if compiled.unsupported_reason() is None:
        finite_checks.append(accepted.with_finite_check_fused)
    for with_check in finite_checks:
        assert [outcome.finite for outcome in with_check(hidden).to_host()] == [True, False, False]
