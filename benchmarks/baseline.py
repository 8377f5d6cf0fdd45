#!/usr/bin/env python3
"""How honest the baseline is: our autoregressive decoding against the model's own `generate`, both with its caches.

    python benchmarks/baseline.py

Every method writes the same greedy tokens for the same prompts, in rotating order; `generate` runs on the model as
transformers loads it. A ratio above 1 means that our loop is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from entmtp.cli_errors import told_plainly
from entmtp.decoding.engine import Engine
from entmtp.errors import EntMTPError
from entmtp.evaluation.intervals import ratio_of_sums
from entmtp.evaluation.suites import SUITES, load_suite, split
from entmtp.evaluation.suites.splits import draw
from entmtp.evaluation.verdicts import ratio
from entmtp.models.backbone import Backbone
from entmtp.models.registry import encode_chat, load_model
from entmtp.scheduling.cost import hardware_name
from entmtp.scheduling.policies import StaticPolicy
from entmtp.trees.topology import Topology

OURS = "entmtp, autoregressive"
CACHES = ("dynamic", "static")
Write = Callable[[list[int]], list[int]]


def main(
    model: Annotated[str, typer.Option(help="'bundled', a hub name or a local folder")] = "bundled",
    prompts: Annotated[int, typer.Option(help="prompts per suite")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="tokens per request")] = 64,
    repetitions: Annotated[int, typer.Option(help="timed runs of each method on each prompt")] = 3,
) -> None:
    """Print tokens per second of each method, and ours over the others with 95% intervals over prompts."""
    with told_plainly("baseline"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        untouched, tokenizer = load_model(model, device=device)
        backbone = Backbone(untouched)
        drawn = [draw(split(load_suite(name).prompts)[1], prompts, seed=0) for name in SUITES]
        ids = [encode_chat(tokenizer, prompt.text) for suite in drawn for prompt in suite]
        methods = {OURS: _ours(backbone, max_new_tokens)}
        methods |= {f"generate, {cache} cache": _generate(untouched, cache, max_new_tokens) for cache in CACHES}
        tokens, seconds = _timed(methods, ids, repetitions)
    Console(width=110).print(_table(tokens, seconds, f"{hardware_name(backbone.device)}, {backbone.dtype}"))


def _ours(backbone: Backbone, max_new_tokens: int) -> Write:
    engine = Engine(backbone, None, StaticPolicy(Topology.root_only(), entropy_window=8))
    return lambda prompt: engine.generate(prompt, max_new_tokens).tokens


def _generate(model: Any, cache: str, max_new_tokens: int) -> Write:
    @torch.inference_mode()
    def write(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=model.device)
        text = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            cache_implementation=cache,
        )
        return [int(token) for token in text[0, len(prompt) :]]

    return write


def _timed(
    methods: dict[str, Write], prompts: Sequence[list[int]], repetitions: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """New tokens per prompt, and seconds per prompt (the sum of all repetitions) by method."""
    names = list(methods)
    tokens, seconds = np.zeros(len(prompts)), {name: np.zeros(len(prompts)) for name in names}
    for name in names:
        methods[name](prompts[0])  # warms up
    for number, prompt in enumerate(prompts):
        written = {}
        for repetition in range(repetitions):
            shift = (number + repetition) % len(names)
            for name in [*names[shift:], *names[:shift]]:
                began = time.perf_counter()
                written[name] = methods[name](prompt)
                seconds[name][number] += time.perf_counter() - began
        if any(text != written[OURS] for text in written.values()):
            raise EntMTPError(f"prompt {number}: the methods wrote different tokens, so their times do not compare")
        tokens[number] = len(written[OURS]) * repetitions
    return tokens, seconds


def _table(tokens: np.ndarray, seconds: dict[str, np.ndarray], where: str) -> Table:
    table = Table("method", "tokens per s", "ours is", title=f"autoregressive decoding on {where}")
    for name, each in seconds.items():
        ours = "" if name == OURS else f"{ratio(ratio_of_sums(each, seconds[OURS], name))} as fast"
        table.add_row(name, f"{tokens.sum() / each.sum():.1f}", ours)
    return table


if __name__ == "__main__":
    typer.run(main)
