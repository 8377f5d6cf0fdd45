#!/usr/bin/env python3
"""Tokens per second that the engine writes for several users at once, by method.

    python -m benchmarks.engine
    python -m benchmarks.engine --concurrency 1 --concurrency 8 --figure engine.svg --record engine.json
    python -m benchmarks.engine --arm entmtp-dynamic --requests 3  # a user's next request follows, as with a service

A closed loop: so many requests are always on their way, each from a scored prompt of the suites, greedy, prompts read
included. Each method has an engine of its own, and all engines take turns at every step: what disturbs the machine
meets all of them alike. The continuous batching of transformers on the same model answers each round by itself. All
must write the same tokens.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp import methods
from entmtp.cli_errors import plain_errors
from entmtp.decoding.engine import Engine
from entmtp.decoding.measure_cost import machine_cost
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError
from entmtp.evaluation.report.plot_style import style_context
from entmtp.files import write_whole
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.intervals import Estimate, paired_ratio, ratio
from entmtp.loading import policy_at_costs
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.persistent_paths import cache_folder
from entmtp.policies.registry import PolicyInputs, make_policy
from entmtp.policies.step_cost import BatchedCost, hardware_name
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.suites import MIXED, PAPER_SUITES, scored_prompts
from entmtp.trees.bank import TreeBank, bundled_bank, load_bank

PLAIN = "autoregressive"
PUBLISHED = "hydra"
PEER = "transformers"
OURS = ("entmtp-goodput", "entmtp-dynamic")
ARMS = (PLAIN, PUBLISHED, "hydra-best", *OURS, PEER)
KNOWN = (*ARMS, "entmtp")
LOADS = (1, 2, 4, 8, 16)
SLACK = 0.98
PAGE = 64
NOTES = (
    "Each round is a closed loop over as many requests per user as requested; tokens/s counts new tokens over the time"
    " of all steps of a round, prompts read included.",
    f"Our methods take turns at every step, in an order that is drawn anew for each; {PEER} answers a whole round.",
    "At a round's end, when no user has a next request, fewer are on their way: a large part of a round of one request"
    " per user, which hits methods whose requests end at different times.",
    "Intervals are over rounds, whose requests are the same for all methods. A bar over all loads is met only where the"
    " interval of every load says so, which needs no correction for their number; a single ratio of the table is one of"
    " many.",
    "All methods wrote the same tokens, or this would have ended with an error.",
    "Trees come from the bank that was calibrated on all suites, costs from steps of each number of requests.",
)


@dataclass(frozen=True)
class Round:
    """One arm's run through a round's requests."""

    seconds: float
    done: list[Completion]

    @property
    def tokens(self) -> int:
        return sum(len(one.tokens) for one in self.done)


def main(
    concurrency: Annotated[list[int] | None, typer.Option(min=1, help="requests at once; may repeat")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="rounds at each concurrency; an interval needs three")] = 6,
    requests: Annotated[int, typer.Option(min=1, help="requests per user and round")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens per request")] = 48,
    arm: Annotated[list[str] | None, typer.Option(help="methods instead of the usual ones")] = None,
    figure: Annotated[Path | None, typer.Option(help="plot tokens per second by concurrency there (SVG)")] = None,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print tokens per second by concurrency and method, and ratios with 95% intervals over rounds."""
    console = Console(width=130)
    with plain_errors("engine", "nothing was recorded"):
        arms = _checked([PLAIN, *(name for name in arm or ARMS if name != PLAIN)])
        loads = sorted(set(concurrency or LOADS))
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it warns with every round
        model, tokenizer = load_model("bundled", device="cuda" if torch.cuda.is_available() else "cpu")
        # A model of its own, since it changes how the model attends.
        peer = load_model("bundled", device=str(model.device))[0] if PEER in arms else None
        backbone = build_backbone(model)
        heads = load_heads(bundled_heads("hydra"), backbone)
        bank = load_bank(bundled_bank(MIXED, "hydra"))
        cost = machine_cost(backbone, heads, cache_folder(), console.print, max(loads))
        prompts = suite_prompts(tokenizer)
        found: dict[int, dict[str, list[Round]]] = {}
        with Progress(console=console) as bar:
            task = bar.add_task("rounds", total=len(loads) * rounds)
            for load in loads:
                context = max(map(len, prompts)) + max_new_tokens
                settings = EngineSettings(slots=load, context=context, prefix_reuse=False)
                engines = {
                    name: engine_of(name, backbone, heads, bank, cost, settings) for name in arms if name != PEER
                }
                found[load] = {name: [] for name in arms}
                for number in range(-1, rounds):  # the first warms up
                    first = (number + 1) * load * requests
                    requested = [prompts[at % len(prompts)] for at in range(first, first + load * requests)]
                    results = in_turns(engines, max_new_tokens, requested, random.Random(number))
                    if PEER in arms:
                        results[PEER] = _by_transformers(peer, load, context, max_new_tokens, requested)
                    check_same(results)
                    if number >= 0:
                        for name, result in results.items():
                            found[load][name].append(result)
                        bar.advance(task)
        table = Table(title="tokens per second", columns=columns(), rows=rows(found))
        title = f"Throughput of the engine, {max_new_tokens} tokens per request, {requests} per user and round"
        if figure is not None:
            write_whole(figure, lambda unfinished: drawn(found).savefig(unfinished, format="svg", bbox_inches="tight"))
        notes = [*NOTES, *conclusions(found)]
        deliver(
            make_record("engine", title, hardware_name(backbone.device), [table], notes, figure), record, uncommitted
        )


def _checked(arms: list[str]) -> list[str]:
    for name in arms:
        if name not in KNOWN:
            raise EntMTPError(f"arm: '{name}' is unknown; choose from {', '.join(KNOWN)}")
    return arms


def suite_prompts(tokenizer: Any) -> list[list[int]]:
    """Scored prompts of all suites in turn, as many of each as the smallest has."""
    suites = [scored_prompts(name, 16) for name in PAPER_SUITES]
    return [encode_chat(tokenizer, prompt.text) for turn in zip(*suites, strict=False) for prompt in turn]


def engine_of(
    name: str, backbone: Backbone, heads: DraftHeads, bank: TreeBank, cost: BatchedCost, settings: EngineSettings
) -> Engine:
    """An engine of its own for the method ``name``."""
    if name == PLAIN:
        return Engine(backbone, None, make_policy(PLAIN, PolicyInputs()), settings)
    return Engine(backbone, heads, policy_at_costs(name, heads, bank, cost, print), settings)


def check_same(results: Mapping[str, Round]) -> None:
    """Raise EntMTPError if a method wrote other tokens than plain decoding."""
    for name, result in results.items():
        if [one.tokens for one in result.done] != [one.tokens for one in results[PLAIN].done]:
            raise EntMTPError(f"engine: {name} wrote other tokens than {PLAIN}; these numbers would mean nothing")


def in_turns(
    engines: Mapping[str, Engine], max_new_tokens: int, prompts: Sequence[list[int]], chance: random.Random
) -> dict[str, Round]:
    """Serves all prompts with every engine, as many at once as it has slots.

    A turn is a step of each engine that is not done yet, in an order that ``chance`` draws.
    """
    params = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
    done = {
        name: [engine.submit(Request(str(at), prompt, params)) for at, prompt in enumerate(prompts)]
        for name, engine in engines.items()
    }
    seconds = dict.fromkeys(engines, 0.0)
    while busy := [name for name, engine in engines.items() if not engine.idle]:
        for name in chance.sample(busy, len(busy)):
            began = time.perf_counter()
            engines[name].step()
            seconds[name] += time.perf_counter() - began
    return {name: Round(seconds[name], done[name]) for name in engines}


def _by_transformers(model: Any, load: int, context: int, max_new_tokens: int, prompts: Sequence[list[int]]) -> Round:
    """The model's own ``generate_batch``, whose manager lives on and so must have room for the longest request."""
    own = model.generation_config
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    blocks = load * (1 + context // PAGE)
    batching = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=blocks, max_batch_tokens=256, max_requests_per_batch=load, allow_block_sharing=False
    )
    began = time.perf_counter()
    outputs = model.generate_batch(
        inputs=list(prompts),
        generation_config=greedy,
        continuous_batching_config=batching,
        persistent_manager=True,
        warmup=False,
    )
    seconds = time.perf_counter() - began
    # Numbered on from call to call, in the order of the prompts.
    ordered = sorted(outputs, key=lambda id: int(id.rpartition("_")[2]))
    return Round(seconds, [Completion(tokens=outputs[id].generated_tokens) for id in ordered])


def columns() -> list[str]:
    """Columns of :func:`rows`."""
    return ["at once", "method", "tokens/s", "tau", "nodes/step", f"over {PLAIN}", f"over {PUBLISHED}"]


def rows(found: Mapping[int, Mapping[str, Sequence[Round]]]) -> list[list[Cell]]:
    """A row per concurrency and arm."""
    table: list[list[Cell]] = []
    for load, arms in found.items():
        for name, its in arms.items():
            done = [one for round_ in its for one in round_.done]
            steps = sum(len(one.steps) for one in done)
            tokens = sum(round_.tokens for round_ in its)
            speed = f"{_tokens_per_second(its):.1f}"
            tau = f"{tokens / steps:.2f}" if steps else ""
            nodes = f"{sum(one.drafted for one in done) / steps:.1f}" if steps else ""
            table.append([load, name, speed, tau, nodes, *(_over(arms, name, base) for base in (PLAIN, PUBLISHED))])
    return table


def _tokens_per_second(rounds: Sequence[Round]) -> float:
    return sum(one.tokens for one in rounds) / sum(one.seconds for one in rounds)


def _over(arms: Mapping[str, Sequence[Round]], name: str, base: str) -> str:
    if base == name or base not in arms:
        return ""
    return ratio(_speedup(arms, name, base))


def _speedup(arms: Mapping[str, Sequence[Round]], name: str, base: str) -> Estimate:
    slow, fast = (np.array([round_.seconds for round_ in arms[each]]) for each in (base, name))
    return paired_ratio(slow, fast).estimate()


def conclusions(found: Mapping[int, Mapping[str, Sequence[Round]]]) -> list[str]:
    """Conclusions on the bars: not slower than plain decoding or the published tree, but for `SLACK`, at any load."""
    sentences = []
    for name in OURS:
        for base in (PLAIN, PUBLISHED):
            pairs = [(load, arms) for load, arms in found.items() if name in arms and base in arms]
            lows = {load: _speedup(arms, name, base).low for load, arms in pairs}
            slower = [str(load) for load, low in lows.items() if low is not None and low < SLACK]
            if pairs:
                said = f"missed at {', '.join(slower)}" if slower else "met"
                sentences.append(
                    f"Bar: {name} at least {SLACK}x as fast as {base} at every load, by the whole interval: {said}."
                )
    return sentences


def drawn(found: Mapping[int, Mapping[str, Sequence[Round]]]) -> Figure:
    """Tokens per second of each arm by concurrency."""
    with style_context():
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.subplots()
        for name in next(iter(found.values())):
            speeds = [_tokens_per_second(arms[name]) for arms in found.values()]
            axes.plot(list(found), speeds, marker="o", label=name, color=methods.colour(name))
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(found), [str(load) for load in found])
        axes.set_xlabel("requests at once")
        axes.set_ylabel("tokens per second")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
