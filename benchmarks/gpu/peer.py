"""Plain decoding against transformers' ``generate`` with a static cache and ``torch.compile``, on the same weights.

Both write as many tokens from the same prompts, in turns. Milliseconds per token are the difference of a long and a
short text over their difference in tokens, so that reading the prompt doesn't count.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import CompileConfig, GenerationConfig, StaticCache

from benchmarks.gpu.assignment import DTYPE, Assignment, Sheet, print_table
from benchmarks.lib.record import Table
from benchmarks.lib.shapes import random_model, shape_of
from entmtp.decoding.engine import Engine
from entmtp.decoding.request import Request
from entmtp.intervals import paired_ratio, ratio
from entmtp.methods import AUTOREGRESSIVE
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.registry import PolicyInputs, make_policy
from entmtp.settings import EngineSettings, SamplingParams

BATCHES = (1, 4)
PROMPT_TOKENS = 128
NEW_TOKENS, DRY_TOKENS = 128, 4
ROUNDS = 7
WARM_UP = 3
"""Texts before the first round: the first compiles, and the next ones record CUDA graphs."""
COLUMNS = ["requests", "ours, ms per token", "transformers, ms per token", "transformers / ours", "same tokens"]
NOTES = [
    f"Plain greedy decoding in {DTYPE} of {PROMPT_TOKENS} tokens after prompts of {PROMPT_TOKENS} random ones, medians"
    " over rounds in which both write once; the interval of the ratio is over rounds. Above 1, ours is faster.",
    "transformers: generate with a StaticCache, whose forward is compiled with mode reduce-overhead on a GPU.",
    "same tokens: random weights have near ties, which kernels that round in another order break otherwise.",
]
Write = Callable[[int], list[list[int]]]
"""A function that writes so many tokens from each prompt."""


def measure(assignment: Assignment) -> None:
    """Measure one request, then several at once."""
    shape = shape_of(assignment.shape)
    model = random_model(shape, assignment.device, DTYPE)
    backbone = build_backbone(model)
    table = Table(title="plain decoding", columns=COLUMNS, rows=[])
    notes = [*NOTES, f"Ours runs {backbone.kernels} kernels."]
    sheet = Sheet(assignment, "peer", f"Plain decoding against transformers: {assignment.shape}", notes)
    sheet.fill(
        {f"{batch} at once": partial(_cell, assignment, sheet, table, model, backbone, batch) for batch in BATCHES}
    )
    print_table(table)


def _cell(assignment: Assignment, sheet: Sheet, table: Table, model: Any, backbone: Backbone, batch: int) -> None:
    tokens = assignment.pick(NEW_TOKENS, DRY_TOKENS)
    drawn = np.random.default_rng(0).integers(backbone.vocab_size, size=(batch, PROMPT_TOKENS)).tolist()
    writers: dict[str, Write] = {
        "ours": partial(write_by_engine, plain_engine(backbone, batch, tokens), drawn),
        "peer": Peer(model, drawn, tokens).write,
    }
    for name, write in writers.items():
        for _ in range(assignment.pick(WARM_UP, 1)):
            began = time.monotonic()
            write(1 + tokens)
            print(f"{batch} at once, {name}: {time.monotonic() - began:.1f} s to warm up")
    rounds = assignment.pick(ROUNDS, 1)
    chance = random.Random(0)
    found = [_round(writers, tokens, chance) for _ in range(rounds)]
    ours, peer = (np.array([each[name].ms for each in found]) for name in writers)
    same = np.mean([np.array(each["ours"].tokens) == np.array(each["peer"].tokens) for each in found])
    compared = ratio(paired_ratio(peer, ours).estimate())
    table.rows.append([batch, f"{np.median(ours):.3f}", f"{np.median(peer):.3f}", compared, f"{same:.0%}"])
    sheet.tables = [table]


@dataclass(frozen=True)
class _Written:
    ms: float
    tokens: list[list[int]]


def _round(writers: dict[str, Write], tokens: int, chance: random.Random) -> dict[str, _Written]:
    """One text by each writer, in an order that ``chance`` draws."""
    found = {}
    for name in chance.sample(list(writers), len(writers)):
        short, _ = _seconds(writers[name], 1)
        long, texts = _seconds(writers[name], 1 + tokens)
        found[name] = _Written(1e3 * (long - short) / tokens, texts)
    return found


def _seconds(write: Write, count: int) -> tuple[float, list[list[int]]]:
    began = time.perf_counter()
    texts = write(count)  # as lists, so that the device is done
    return time.perf_counter() - began, texts


def plain_engine(backbone: Backbone, batch: int, tokens: int) -> Engine:
    """An engine for plain decoding of so many requests at once, whose prompts it reads in one step."""
    settings = EngineSettings(
        slots=batch,
        context=PROMPT_TOKENS + tokens + 1,
        prefill_tokens=batch * PROMPT_TOKENS,
        prefix_reuse=False,
    )
    return Engine(backbone, None, make_policy(AUTOREGRESSIVE, PolicyInputs()), settings)


def write_by_engine(engine: Engine, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Greedy texts of ``count`` tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    done = [engine.submit(Request(str(at), prompt, params)) for at, prompt in enumerate(prompts)]
    while not engine.idle:
        engine.step()
    return [list(one.tokens) for one in done]


class Peer:
    """transformers' ``generate`` on one static cache, so that all texts are written at the same addresses."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self._model = model
        model.generation_config.eos_token_id = None  # of random weights no text ends
        self._ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
        self._cache = StaticCache(config=model.config, max_cache_len=PROMPT_TOKENS + tokens + 1)
        # Each number of requests is compiled for itself, as dynamic shapes would be slower.
        self._compile = CompileConfig(dynamic=False) if model.device.type == "cuda" else None

    def write(self, count: int) -> list[list[int]]:
        """Greedy texts of ``count`` tokens."""
        self._cache.reset()
        config = GenerationConfig(
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            compile_config=self._compile,
        )
        written = self._model.generate(
            inputs=self._ids,
            attention_mask=torch.ones_like(self._ids),
            generation_config=config,
            past_key_values=self._cache,
        )
        texts: list[list[int]] = written[:, self._ids.shape[1] :].tolist()
        return texts
