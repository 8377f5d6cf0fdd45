"""Tokens per second of the engine for several users at once, by method, in rounds of a closed loop.

Two subjects: the bundled model with its own heads, if its file is there, and the shape with random heads. Those guess
nothing, so that the shape's rows say what trying costs: an adaptive method should come out as plain decoding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.engine import PLAIN, PUBLISHED, Round, check_same, columns, engine_of, in_turns, rows, suite_prompts
from benchmarks.gpu.assignment import DTYPE, Assignment, Sheet, print_table, release_memory
from benchmarks.gpu.bundled import bundled_unavailable_reason
from benchmarks.lib.record import Table
from benchmarks.lib.shapes import random_heads, random_model, shape_of
from entmtp.decoding.measure_cost import step_cost
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import load_model
from entmtp.policies.step_cost import BatchedCost
from entmtp.settings import EngineSettings
from entmtp.suites import MIXED
from entmtp.trees.bank import bundled_bank, load_bank

ARMS = (PLAIN, PUBLISHED, "entmtp-goodput", "entmtp-dynamic")
LOADS, DRY_LOADS = (1, 4, 16), (1, 2)
ROUNDS = 4
NEW_TOKENS, DRY_TOKENS = 48, 4
PROMPT_TOKENS = 64
BUNDLED = "bundled model with its own heads, float32"
NOTES = [
    f"tokens/s counts new tokens, {NEW_TOKENS} of each request, over the time of all steps of a round, prompts read"
    " included. The methods take turns at every step. Intervals are over rounds.",
    "All methods wrote the same tokens in float32, or their cell would have failed. In bfloat16 they may differ.",
    "Random heads guess nothing: the shape's rows say what trying costs, not what drafting gains.",
]


@dataclass(frozen=True)
class Subject:
    """A model, its heads and prompts for it."""

    backbone: Backbone
    heads: DraftHeads
    prompts: list[list[int]]
    exact: bool


def measure(assignment: Assignment) -> None:
    """Measure both subjects at each number of users."""
    notes = list(NOTES)
    sheet = Sheet(assignment, "throughput", "Throughput of the engine", notes)
    subjects: dict[str, Callable[[], Subject]] = {}
    if reason := _without_bundled(assignment):
        notes.append(f"{BUNDLED}: not measured, {reason}.")
        print(notes[-1])
    else:
        subjects[BUNDLED] = cache(partial(_bundled, assignment))
    subjects[f"{assignment.shape} with random heads, {DTYPE}"] = cache(partial(_random, assignment))
    found: dict[str, dict[int, dict[str, list[Round]]]] = {name: {} for name in subjects}
    sheet.fill(
        {
            f"{name}, {load} at once": partial(_cell, assignment, sheet, found, name, loaded, load)
            for name, loaded in subjects.items()
            for load in assignment.pick(LOADS, DRY_LOADS)
        }
    )
    for table in sheet.tables:
        print_table(table)


def _without_bundled(assignment: Assignment) -> str | None:
    return "a dry run takes random weights alone" if assignment.dry else bundled_unavailable_reason()


def _bundled(assignment: Assignment) -> Subject:
    model, tokenizer = load_model("bundled", device=str(assignment.device))
    backbone = build_backbone(model)
    return Subject(backbone, load_heads(bundled_heads(PUBLISHED), backbone), suite_prompts(tokenizer), exact=True)


def _random(assignment: Assignment) -> Subject:
    release_memory()
    shape = shape_of(assignment.shape)
    backbone = build_backbone(random_model(shape, assignment.device, DTYPE))
    prompts = np.random.default_rng(0).integers(shape.vocab, size=(max(LOADS), PROMPT_TOKENS)).tolist()
    return Subject(backbone, random_heads(shape, PUBLISHED, backbone), prompts, exact=False)


def _cell(
    assignment: Assignment,
    sheet: Sheet,
    found: dict[str, dict[int, dict[str, list[Round]]]],
    name: str,
    loaded: Callable[[], Subject],
    load: int,
) -> None:
    subject = loaded()
    tokens = assignment.pick(NEW_TOKENS, DRY_TOKENS)
    measured = rounds_of(subject, load, tokens, assignment.pick(ROUNDS, 1))
    if not subject.exact:
        same = np.mean([_same(measured, arm) for arm in ARMS])
        sheet.notes.append(f"{name}, {load} at once: {same:.0%} of the texts are plain decoding's.")
    found[name][load] = measured
    sheet.tables = [
        Table(title=f"tokens per second, {each}", columns=columns(), rows=rows(by_load))
        for each, by_load in found.items()
        if by_load
    ]


def rounds_of(subject: Subject, load: int, tokens: int, rounds: int) -> dict[str, list[Round]]:
    """Rounds of every method after one that warms up, each with a request per user."""
    settings = EngineSettings(
        slots=load, context=max(map(len, subject.prompts)) + tokens, prefix_reuse=False, prefill_tokens=1024
    )
    bank = load_bank(bundled_bank(MIXED, PUBLISHED))
    with TemporaryDirectory() as folder:
        cost = _cost(subject, settings, Path(folder))
    engines = {name: engine_of(name, subject.backbone, subject.heads, bank, cost, settings) for name in ARMS}
    measured: dict[str, list[Round]] = {name: [] for name in ARMS}
    for number in range(-1, rounds):
        first = (number + 1) * load
        requested = [subject.prompts[at % len(subject.prompts)] for at in range(first, first + load)]
        results = in_turns(engines, tokens, requested, random.Random(number))
        if subject.exact:
            check_same(results)
        if number >= 0:
            for name, result in results.items():
                measured[name].append(result)
    return measured


def _cost(subject: Subject, settings: EngineSettings, folder: Path) -> BatchedCost:
    """Costs of steps of this many requests, and of one, which every policy knows; measured anew for each run."""
    return BatchedCost(
        measured={
            batch: step_cost(subject.backbone, subject.heads, folder, print, batch, settings.context)
            for batch in sorted({1, settings.slots})
        }
    )


def _same(measured: Mapping[str, Sequence[Round]], arm: str) -> float:
    """Share of the texts of ``arm`` that are plain decoding's."""
    pairs = [
        (one.tokens, plain.tokens)
        for its, reference in zip(measured[arm], measured[PLAIN])
        for one, plain in zip(its.done, reference.done)
    ]
    return sum(one == plain for one, plain in pairs) / len(pairs)
