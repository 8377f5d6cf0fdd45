#!/usr/bin/env python3
"""Cost of requests that forbid drafting (``max_nodes: 0``), over plain decoding, which has no heads at all.

    python -m benchmarks.undrafted

The same prompts through an engine of each method and through one without heads, step by step in turns. The texts must
be the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.intervals import paired_ratio, ratio
from entmtp.loading import load_method, policy_of
from entmtp.method_spec import MethodSpec, check_method
from entmtp.methods import heads_of
from entmtp.models.backbone import Backbone
from entmtp.models.loading.load import encode_chat
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.suites import PAPER_SUITES, scored_prompts

PLAIN = "autoregressive"
AGAIN = "autoregressive again"
"""A second engine of plain decoding: how far two that do the same are apart."""
METHODS = ("entmtp-dynamic", "entmtp-goodput", "hydra")
NOTES = (
    "ms per token after the first, the median over all steps of a prompt's answers; the ratio's interval is over"
    " prompts. A method's requests forbid drafting.",
    "All engines share one model and take turns at every step, in an order that is drawn anew for each.",
    f"{AGAIN}: a second engine that does the same, for comparison.",
)


def main(
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help=f"whose requests forbid it; repeatable; else {', '.join(METHODS)}"),
    ] = None,
    prompts: Annotated[int, typer.Option(min=3, help="of each suite")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="times that each prompt is asked of each")] = 3,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Measure what is left of drafting where a request forbids it."""
    with plain_errors("undrafted", interrupted="nothing was recorded"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        plain, tokenizer = load_method(MethodSpec(PLAIN, device=device), print, EngineSettings.for_one())
        again = Engine(plain.backbone, None, plain.policy, plain.settings)
        engines = {PLAIN: plain, AGAIN: again} | {name: engine_of(name, plain.backbone) for name in methods or METHODS}
        texts = [one.text for name in PAPER_SUITES for one in scored_prompts(name, prompts)]
        ids = [encode_chat(tokenizer, text) for text in texts]
        found = measure(engines, ids, tokens, rounds)
        columns = ["method", "ms per token", "over plain"]
        table = Table(title="Requests without drafting", columns=columns, rows=rows(found))
        hardware = hardware_name(plain.backbone.device)
        deliver(
            make_record("undrafted", "What forbidding to draft costs", hardware, [table], NOTES), record, uncommitted
        )


def engine_of(name: str, backbone: Backbone) -> Engine:
    """The method with the same weights in memory: two copies of them differ by some percent in how fast they are read.

    Raises:
        EntMTPError: for an unknown method.
    """
    method = MethodSpec(name)
    check_method(method)
    heads = load_heads(bundled_heads(heads_of(name)), backbone)
    settings = EngineSettings.for_one()
    return Engine(backbone, heads, policy_of(method, backbone, heads, settings, print), settings)


def measure(
    engines: Mapping[str, Engine], prompts: Sequence[Sequence[int]], tokens: int, rounds: int
) -> dict[str, np.ndarray]:
    """Seconds per token of each engine's answers without drafting ``[prompts]``: medians over steps of all rounds.

    Raises:
        EntMTPError: if two engines answer differently.
    """
    taken: dict[str, list[list[float]]] = {name: [[] for _ in prompts] for name in engines}
    chance = random.Random(0)
    for at in track(range(-1, rounds * len(prompts)), "prompts"):
        number = max(0, at) % len(prompts)
        for name, seconds in _answered(engines, prompts[number], tokens, chance, number).items():
            if at >= 0:  # the first is the warm-up
                taken[name][number] += seconds
    return {name: np.array([np.median(each) for each in times]) for name, times in taken.items()}


def _answered(
    engines: Mapping[str, Engine], prompt: Sequence[int], tokens: int, chance: random.Random, number: int
) -> dict[str, list[float]]:
    """Seconds of every step of each engine after an answer's first token; their order is drawn anew for each step."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    done = {name: engine.submit(Request("one", prompt, params, max_nodes=0)) for name, engine in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    while busy := [name for name, engine in engines.items() if not engine.idle]:
        for name in chance.sample(busy, len(busy)):
            decoding = bool(done[name].tokens)
            began = time.perf_counter()
            engines[name].step()
            if decoding:
                seconds[name].append(time.perf_counter() - began)
    for name, one in done.items():
        if one.tokens != done[PLAIN].tokens:
            raise EntMTPError(f"text: {name} and {PLAIN} differ on prompt {number}")
    return seconds


def rows(found: Mapping[str, np.ndarray]) -> list[list[Cell]]:
    """A row per engine, plain decoding first, with the others' ratios to it."""
    plain = found[PLAIN]
    return [
        [name, f"{1e3 * times.mean():.2f}", "" if name == PLAIN else ratio(paired_ratio(times, plain).estimate())]
        for name, times in found.items()
    ]


if __name__ == "__main__":
    typer.run(main)
