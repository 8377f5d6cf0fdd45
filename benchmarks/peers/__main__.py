#!/usr/bin/env python3
"""Speed of the bundled model with EntMTP, and with others, on the same prompts.

    python -m benchmarks.peers
    python -m benchmarks.peers --llama-python llama/bin/python --record peers.json

Arms take turns on every scored prompt in rotating order: our autoregressive decoding and EntMTP, on the model's own
numbers and on kernels that round the inputs of products to int8; the untouched model's own ``generate`` with its two
caches and with prompt lookup; and, where an interpreter with llama-cpp-python is given, llama.cpp on the same weights,
which rounds its inputs too. All that round nothing must write the same tokens. A ratio above 1 means that ours is
faster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.lib.comparison import Bar, Comparison, TimedText, table_rows, to_table
from benchmarks.lib.record import RecordOption, UncommittedOption, deliver, make_record
from benchmarks.peers.arms import (
    AUTOREGRESSIVE,
    CACHES,
    DYNAMIC,
    ENTMTP,
    Arm,
    Referee,
    ScoredSuite,
    generate_arms,
    llama_arm,
    measure,
    own_arm,
    rounded,
    scored_suites,
)
from benchmarks.peers.llama_peer import HOW_TO_ADD, LLAMA, LlamaPeer, bundled_ggufs
from entmtp.cli_errors import plain_errors
from entmtp.decoding.measure_cost import step_cost
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import Toolbox, make_engine
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.block_weight import dequantize_layers
from entmtp.models.kernels.choices import CHOICES
from entmtp.models.loading.load import load_model
from entmtp.models.transformers_model import sharing_copy
from entmtp.persistent_paths import cache_folder
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import EngineSettings, Kernels
from entmtp.suites import PAPER_SUITES
from entmtp.trees.bank import bundled_bank, load_bank

OURS = (AUTOREGRESSIVE, ENTMTP, DYNAMIC)
ROUNDING: Kernels = "fused-int8"
COMPARED = (DYNAMIC, rounded(DYNAMIC))
"""The arms whose speedup over every other is shown."""
BEST_CACHE = "generate with its best cache"
BARS = (
    Bar(AUTOREGRESSIVE, CACHES, BEST_CACHE, 1.3, on_each=False),
    Bar(ENTMTP, (AUTOREGRESSIVE,), AUTOREGRESSIVE, 1.15, on_each=False),
    *(Bar(arm, (AUTOREGRESSIVE,), AUTOREGRESSIVE, 1.0, on_each=True) for arm in (ENTMTP, DYNAMIC)),
    *(Bar(arm, CACHES, BEST_CACHE, 1.5, on_each=True) for arm in (ENTMTP, DYNAMIC)),
)
LLAMA_BARS = (
    Bar(AUTOREGRESSIVE, (LLAMA,), LLAMA, 1.0, on_each=False),
    Bar(rounded(AUTOREGRESSIVE), (LLAMA,), LLAMA, 1.0, on_each=False),
    Bar(DYNAMIC, (LLAMA,), LLAMA, 1.6, on_each=True),
    Bar(rounded(DYNAMIC), (LLAMA,), LLAMA, 1.6, on_each=True),
)


def main(
    prompts: Annotated[int, typer.Option(min=1, help="scored prompts per suite")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens per text")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="timed texts of each arm on each prompt")] = 3,
    llama_python: Annotated[Path | None, typer.Option(help="interpreter that has llama-cpp-python; CPU only")] = None,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print tokens per second of every arm, ours over the others with 95% intervals over prompts, and the bars."""
    console = Console(width=130)
    with plain_errors("peers", "nothing was recorded"), ExitStack() as stack:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if llama_python and device == "cuda":
            raise EntMTPError(
                "llama-python: llama.cpp is compared on the CPU only; set CUDA_VISIBLE_DEVICES= or leave it out"
            )
        model, tokenizer = load_model("bundled", device=device)
        if (load := os.getloadavg()[0]) > torch.get_num_threads() / 2:
            console.print(
                f"the machine is busy (load {load:.1f}), which hurts methods unequally; better wait until it is quiet"
            )
        suites = scored_suites(tokenizer, prompts)
        context = max(len(ids) for suite in suites for ids in suite.prompts) + max_new_tokens
        llamas = {name: stack.enter_context(peer) for name, peer in _llamas(llama_python, context)}
        # By its own code on float32 weights: unpacking blocks anew in each pass would take most of its time.
        plain = sharing_copy(model)
        dequantize_layers(plain)
        others = generate_arms(plain) | {name: llama_arm(peer) for name, peer in llamas.items()}
        arms = {suite: own | others for suite, own in _own(build_backbone(model), console).items()}
        free = frozenset(llamas)
        if CHOICES[ROUNDING].unsupported_reason(model.dtype, model.device) is None:
            for suite, own in _own(build_backbone(model, ROUNDING), console).items():
                arms[suite] |= {rounded(name): arm for name, arm in own.items()}
            free |= {rounded(name) for name in OURS}
        timed = _timed(suites, arms, max_new_tokens, repetitions, Referee(plain, free, console.print), console)
        machine = hardware_name(model.device)
        comparison = Comparison(timed)
        compared = [arm for arm in COMPARED if arm in comparison.arms]
        bars = [bar for bar in (*BARS, *LLAMA_BARS) if {bar.arm, *bar.peers} <= set(comparison.arms)]
        rows, conclusions = table_rows(comparison, compared), [bar.judge(comparison) for bar in bars]
        table = to_table(rows, compared, f"the bundled model, float32, {max_new_tokens} tokens per text")
        notes = conclusions if llama_python else [*conclusions, HOW_TO_ADD]
        notes += [f"{name} is {peer.version}." for name, peer in llamas.items()]
        title = "EntMTP and autoregressive decoding next to peers"
        deliver(make_record("peers", title, machine, [table], notes), record, uncommitted)


def _own(backbone: Backbone, console: Console) -> dict[str, dict[str, Arm]]:
    """Our arms by suite, each with the suite's own bank."""
    heads = load_heads(bundled_heads("hydra"), backbone)
    cost = step_cost(backbone, heads, cache_folder(), console.print)
    found = {}
    for suite in PAPER_SUITES:
        tools = Toolbox(backbone, {"hydra": heads}, {"hydra": load_bank(bundled_bank(suite, "hydra"))}, {"hydra": cost})
        found[suite] = {arm: own_arm(make_engine(arm, tools, EngineSettings.for_one())) for arm in OURS}
    return found


def _llamas(python: Path | None, context: int) -> Iterator[tuple[str, LlamaPeer]]:
    """One child for each of the files, started at its turn."""
    if python is not None:
        for name, gguf in bundled_ggufs(cache_folder() / "ggufs").items():
            yield name, LlamaPeer(python, gguf, context, torch.get_num_threads())


def _timed(
    suites: Sequence[ScoredSuite],
    arms: Mapping[str, Mapping[str, Arm]],
    max_new_tokens: int,
    repetitions: int,
    referee: Referee,
    console: Console,
) -> list[TimedText]:
    """Measures, with progress on the terminal."""
    texts = repetitions * sum(len(suite.prompts) * len(arms[suite.suite]) for suite in suites)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("warming up", total=texts)

        def advance(what: str) -> None:
            progress.update(task, advance=1, description=what)

        return measure(suites, arms, max_new_tokens, repetitions, referee, advance)


if __name__ == "__main__":
    typer.run(main)
