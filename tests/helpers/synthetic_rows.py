"""Benchmark rows with known properties, made without a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, RequestRow, Source, StepRow, as_table
from entmtp.policies.step_cost import StepCost

SUITES: Mapping[str, Source] = {"humaneval": "package", "gsm8k": "hub", "sharegpt": "file", "litbench": "sample"}
# Milliseconds per step and the number of tree nodes of each arm; an entmtp step chooses by entropy.
ARMS: Mapping[str, tuple[float, int]] = {
    "autoregressive": (30.0, 0),
    "medusa": (120.0, 63),
    "medusa-best": (38.0, 6),
    "hydra": (122.0, 63),
    "hydra-best": (40.0, 8),
    "entmtp": (39.0, 8),
    "entmtp-goodput": (38.5, 8),
    "entmtp-dynamic": (38.0, 8),
    "entmtp-transfer": (38.5, 8),
    "entmtp-mixed": (38.2, 8),
    "always-big": (121.0, 63),
    "random": (39.0, 8),
    "bank-oracle": (37.0, 8),
    "hindsight": (36.0, 3),
}
DEPTH = 4
COST = StepCost(
    nodes=[0, 2, 63],
    verify_ms=[30.0, 32.0, 120.0],
    narrow_draft_ms=[1.0, 2.0, 3.0, 4.0],
    wide_draft_ms=[2.0, 4.0, 6.0, 8.0],
    wide_nodes=63,
    hardware="synthetic",
)
"""About what the arms above take."""


def make_rows(
    *,
    arms: Sequence[str] = tuple(ARMS),
    suites: Sequence[str] = tuple(SUITES),
    prompts: int = 6,
    repetitions: int = 3,
    new_tokens: int = 64,
    seed: int = 0,
) -> tuple[list[RequestRow], list[StepRow]]:
    """Rows of a benchmark in which accepted tokens fall with entropy and every arm writes the same tokens."""
    rng = np.random.default_rng(seed)
    requests: list[RequestRow] = []
    steps: list[StepRow] = []
    for suite in suites:
        for number in range(prompts):
            slowness = float(rng.uniform(0.9, 1.1))
            for arm in arms:
                written = _steps(rng, suite, arm, f"{suite}-{number}", new_tokens, slowness)
                for repetition in range(repetitions):
                    repeated = [_again(step, repetition, rng) for step in written]
                    steps += repeated
                    requests.append(_request(repeated, suite, arm, f"{suite}-{number}", repetition))
    return requests, steps


def _steps(rng: np.random.Generator, suite: str, arm: str, prompt: str, tokens: int, slowness: float) -> list[StepRow]:
    rows: list[StepRow] = []
    position, average = 0, 0.5
    while position < tokens:
        entropy = float(rng.gamma(1.0, 0.6))
        average = 0.8 * average + 0.2 * entropy
        milliseconds, nodes = ARMS[arm]
        if arm in ("entmtp", "random"):
            nodes = 16 if average < 0.45 else 8 if average < 0.8 else 2
        depth = 0 if nodes == 0 else min(DEPTH, nodes)
        hit = 0.75 * np.exp(-entropy)
        accepted = 1
        while accepted - 1 < depth and position + accepted < tokens and rng.random() < hit:
            accepted += 1
        rows.append(
            StepRow(
                suite=suite,
                arm=arm,
                prompt_id=prompt,
                repetition=0,
                step=len(rows),
                position=position,
                tree=f"n{nodes}-d{depth}-w{nodes // depth}-00000000" if nodes else "n0",
                nodes=nodes,
                depth=depth,
                accepted=accepted,
                entropy=entropy,
                entropy_ema=average,
                draft_ms=0.0 if nodes == 0 else 3.0 * slowness,
                verify_ms=(milliseconds - 4.0) * slowness,
                accept_ms=0.5,
                policy_ms=0.1,
                accepted_path=[0] * (accepted - 1),
            )
        )
        position += accepted
    return rows


def _again(step: StepRow, repetition: int, rng: np.random.Generator) -> StepRow:
    fields = {name: getattr(step, name) for name in StepRow.__dataclass_fields__}
    fields |= {"repetition": repetition, "verify_ms": step.verify_ms * float(rng.uniform(0.98, 1.02))}
    return StepRow(**fields)


def _request(steps: Sequence[StepRow], suite: str, arm: str, prompt: str, repetition: int) -> RequestRow:
    seconds = {
        name: sum(getattr(step, f"{name}_ms") for step in steps) / 1000
        for name in ("draft", "verify", "accept", "policy")
    }
    tokens = sum(step.accepted for step in steps)
    return RequestRow(
        suite=suite,
        source=SUITES[suite],
        arm=arm,
        prompt_id=prompt,
        repetition=repetition,
        order=list(ARMS).index(arm),
        prompt_tokens=40,
        new_tokens=tokens,
        steps=len(steps),
        drafted=sum(step.nodes for step in steps),
        captures=0,
        unsettled_steps=0,
        seconds=0.08 + 1.02 * sum(seconds.values()),
        prefill_seconds=0.08,
        draft_seconds=seconds["draft"],
        verify_seconds=seconds["verify"],
        accept_seconds=seconds["accept"],
        policy_seconds=seconds["policy"],
        identical=True,
        first_difference=-1,
        tie_margin=float("nan"),
        score=float(repetition == 0) if suite == "gsm8k" else None,
        log_likelihood=-0.5 - 0.1 * int(prompt.rpartition("-")[2]),
        text="<b>text</b>",
        token_ids=list(range(tokens)),
    )


def make_tables(**chosen: Any) -> tuple[pa.Table, pa.Table]:
    """The rows of :func:`make_rows` as the tables that are read back from disk."""
    requests, steps = make_rows(**chosen)
    return as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)
