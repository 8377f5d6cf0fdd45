#!/usr/bin/env python3
"""Speed of the bundled model with each kind of its draft heads, and by what chooses the trees.

    python -m benchmarks.drafters
    python -m benchmarks.drafters --prompts 8 --max-new-tokens 96 --record drafters.json

Each kind of heads drafts its best constant tree, and trees that ``entmtp-dynamic`` chooses; EAGLE-3 heads also draft
EAGLE-2's tree. Arms take turns on every scored prompt of each suite, greedy, prompts read included. All must write the
same tokens. A ratio above 1 means that the arm in the column's title is faster.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.lib.comparison import Bar, Comparison, TimedText, table_rows, to_table
from benchmarks.lib.record import RecordOption, UncommittedOption, deliver, make_record
from benchmarks.peers.arms import WARM_UP_TOKENS, scored_suites
from entmtp.cli_errors import plain_errors
from entmtp.decoding.engine import Engine
from entmtp.decoding.measure_cost import step_cost
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import Toolbox, make_engine
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.methods import AUTOREGRESSIVE, EAGLE3, HYDRA, of_family
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import load_model
from entmtp.persistent_paths import cache_folder
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import EngineSettings
from entmtp.trees.bank import bundled_bank, load_bank

DYNAMIC, BEST = "entmtp-dynamic", "-best"


def over(method: str, kind: str) -> str:
    """Name of a method's arm with heads of a kind, which methods that run with any kind need."""
    return method if method.startswith(kind) else f"{method}, {kind}"


COMPARED = over(DYNAMIC, EAGLE3)
"""The arm whose speedup over every other is shown."""
BARS = (
    Bar(COMPARED, (over(DYNAMIC, HYDRA),), over(DYNAMIC, HYDRA), 1.15, on_each=False),
    Bar(COMPARED, (EAGLE3,), EAGLE3, 1.0, on_each=True),
    Bar(COMPARED, (EAGLE3 + BEST,), EAGLE3 + BEST, 1.0, on_each=True),
)


def main(
    prompts: Annotated[int, typer.Option(min=1, help="scored prompts per suite")] = 6,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens per text")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="timed texts of each arm on each prompt")] = 1,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print tokens per second of every arm, and of the compared one over the others with 95% intervals over prompts."""
    console = Console(width=130)
    with plain_errors("drafters", "nothing was recorded"):
        model, tokenizer = load_model("bundled", device="cuda" if torch.cuda.is_available() else "cpu")
        if (load := os.getloadavg()[0]) > torch.get_num_threads() / 2:
            console.print(f"the machine is busy (load {load:.1f}), which hurts arms unequally; better wait")
        backbone = build_backbone(model)
        tools = {kind: _tools(kind, backbone, console) for kind in BUNDLED_KINDS}
        timed: list[TimedText] = []
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("warming up", total=None)
            for scored in scored_suites(tokenizer, prompts):
                engines = dict(_engines(scored.suite, tools))

                def advance(arm: str, label: str = scored.label) -> None:
                    progress.update(task, advance=1, description=f"{label}, {arm}")

                timed += measure(scored.label, scored.prompts, engines, max_new_tokens, repetitions, advance)
        comparison = Comparison(timed)
        compared = [arm for arm in (COMPARED,) if arm in comparison.arms]
        bars = [bar for bar in BARS if {bar.arm, *bar.peers} <= set(comparison.arms)]
        title = f"the bundled model, float32, {max_new_tokens} tokens per text"
        table = to_table(table_rows(comparison, compared), compared, title)
        notes = [bar.judge(comparison) for bar in bars]
        notes.append("All arms wrote the same tokens, or this would have ended with an error.")
        title = "Kinds of draft heads, each with its best constant tree and with trees chosen at every step"
        deliver(make_record("drafters", title, hardware_name(backbone.device), [table], notes), record, uncommitted)


def _tools(kind: str, backbone: Backbone, console: Console) -> Toolbox:
    """Model and heads of one kind; banks are the suites'."""
    heads = load_heads(bundled_heads(kind), backbone).draft_only()
    return Toolbox(backbone, {kind: heads}, {}, {kind: step_cost(backbone, heads, cache_folder(), console.print)})


def _engines(suite: str, tools: Mapping[str, Toolbox]) -> Iterator[tuple[str, Engine]]:
    """An engine for each arm of a suite."""
    for kind, its in tools.items():
        with_bank = replace(its, banks={kind: load_bank(bundled_bank(suite, kind))})
        if kind == next(iter(tools)):
            yield AUTOREGRESSIVE, make_engine(AUTOREGRESSIVE, with_bank, EngineSettings.for_one())
        published = [EAGLE3] if kind == EAGLE3 else []
        for method in (*published, *(name for name in of_family(kind) if name.endswith(BEST)), DYNAMIC):
            yield over(method, kind), make_engine(method, with_bank, EngineSettings.for_one())


def measure(
    suite: str,
    prompts: Sequence[list[int]],
    engines: Mapping[str, Engine],
    max_new_tokens: int,
    repetitions: int,
    advance: Callable[[str], None],
) -> list[TimedText]:
    """Every arm on every prompt, in rotating order; each first writes a little untimed.

    ``advance`` hears of each arm that has written.

    Raises:
        EntMTPError: if an arm writes other tokens than plain decoding.
    """
    timed, names = [], list(engines)
    for (number, prompt), turn in itertools.product(enumerate(prompts), range(repetitions)):
        reference = engines[AUTOREGRESSIVE].generate(prompt, max_new_tokens).tokens
        shift = (number * repetitions + turn) % len(names)
        for name in [*names[shift:], *names[:shift]]:
            engines[name].generate(prompt, WARM_UP_TOKENS)
            began = time.perf_counter()
            done = engines[name].generate(prompt, max_new_tokens)
            seconds = time.perf_counter() - began
            if done.tokens != reference:
                raise EntMTPError(f"drafters: {name} wrote other tokens than {AUTOREGRESSIVE} on a prompt of {suite}")
            timed.append(TimedText(suite, name, number, len(reference), seconds, True, len(done.steps), done.drafted))
            advance(name)
    return timed


if __name__ == "__main__":
    typer.run(main)
