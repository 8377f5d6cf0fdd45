#!/usr/bin/env python3
"""Overload: many times more requests than the service has capacity for.

    python -m benchmarks.overload                                 # starts the service as `make serve` does
    python -m benchmarks.overload --url http://127.0.0.1:8000    # while it runs, on the same machine

1. A closed loop with one user per slot measures the capacity.
2. The same prompts arrive at random times, at a multiple of that rate. Refused requests must get a 429 at once.
   Accepted requests must be generated nearly as fast as at capacity. No process may grow in memory.
3. One client sends requests until one is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import psutil
import torch
import typer
from rich.console import Console

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.serving import service_address
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.loadtest.traffic import Endpoint, RequestOutcome, Traffic
from entmtp.policies.step_cost import hardware_name
from entmtp.suites import PAPER_SUITES, scored_prompts

REFUSED = "HTTP 429"
REFUSAL_SECONDS, TPOT_RATIO, RECOVERY_SECONDS, MEMORY_RISE_MIB = 1.0, 1.5, 5.0, 64.0
_PATIENCE_SECONDS = 120.0
NOTES = (
    "Memory is that of all Serve replicas and proxies of the machine, at the begin of the overload and at its highest."
    " Recovery is from the last request of the overload until a new one is taken and its first token comes, after those"
    " that wait already.",
)


def main(
    url: Annotated[str | None, typer.Option(help="of a service that runs; else one is started")] = None,
    model: Annotated[str, typer.Option(help="that it serves")] = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="at capacity: as many as the engine has slots")] = 8,
    times: Annotated[float, typer.Option(min=1, help="the capacity")] = 20.0,
    seconds: Annotated[float, typer.Option(min=1, help="of overload")] = 60.0,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer")] = 32,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Overload the service."""
    with plain_errors("overload", interrupted="nothing was recorded"), service_address(url) as address:
        console = Console(stderr=True)
        texts = [one.text for name in PAPER_SUITES for one in scored_prompts(name, 12)]
        random.Random(0).shuffle(texts)  # at any time the suites' shares are the same, as their texts are not as fast
        traffic = Traffic(Endpoint("service", f"{address}/v1", model), texts, tokens, 600.0)
        closed = asyncio.run(_calm(traffic, users, max(2 * len(texts), 4 * users)))
        if errors := {one.error for one in closed if one.error}:
            raise EntMTPError(f"url: {address} fails before any overload ({', '.join(map(str, errors))}); does it run?")
        calm, capacity = capacity_of(closed)
        if not _usual_tpot(calm):
            raise EntMTPError(f"url: {address} sends answers in one part; the time per token needs a stream")
        console.print(f"capacity {capacity:.2f} requests/s; {times:g} times as many for {seconds:g} s")
        outcomes, memory, recovery = asyncio.run(_overload(traffic, capacity * times, seconds))
        table = _table(calm, outcomes, memory, recovery)
        note = f"Capacity {capacity:.2f} requests/s with {users} users; {times:g} times that for {seconds:g} s."
        machine = hardware_name(torch.device("cpu"))
        made = make_record("overload", "Overload", machine, [table], [note, *NOTES])
        deliver(made, record, uncommitted)


async def _calm(traffic: Traffic, users: int, requests: int) -> list[RequestOutcome]:
    await traffic.closed(range(users), users, lambda _: None)  # warm-up
    return await traffic.closed(range(requests), users, lambda _: None)


def capacity_of(outcomes: Sequence[RequestOutcome]) -> tuple[list[RequestOutcome], float]:
    """Outcomes of a closed loop while all users were active, and their number per second.

    After the last request is sent, fewer users are active and their answers are faster, so those are left out.
    """
    first_goes = max(one.began for one in outcomes)
    answered = [one for one in outcomes if one.ended <= first_goes]
    return answered, len(answered) / first_goes


async def _overload(traffic: Traffic, rate: float, seconds: float) -> tuple[list[RequestOutcome], list[float], float]:
    memory = [_mebibytes()]

    async def watch() -> None:
        while True:
            await asyncio.sleep(1.0)
            memory.append(_mebibytes())

    watching = asyncio.create_task(watch())
    arrived = asyncio.create_task(traffic.open(range(int(rate * seconds)), rate, 0, lambda _: None))
    await asyncio.sleep(seconds)
    began = time.perf_counter()
    probe = asyncio.create_task(_probe(traffic, began))
    outcomes, recovery = await arrived, await probe
    watching.cancel()
    return outcomes, memory, recovery


async def _probe(traffic: Traffic, began: float) -> float:
    """Seconds until a new request has its first token; it is sent again when refused."""
    while time.perf_counter() - began < _PATIENCE_SECONDS:
        sent = time.perf_counter()
        probing = Traffic(traffic.endpoint, ["Say yes."], 8, 600.0)
        (outcome,) = await probing.closed([0], 1, lambda _: None)
        if outcome.error is None:
            return sent + outcome.ttft - began
        await asyncio.sleep(0.2)
    return float("inf")


def _mebibytes() -> float:
    """Memory of all running replicas and proxies."""
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(("ray::ServeReplica", "ray::ProxyActor")):
                total += process.memory_info().rss
    return total / 2**20


def _table(
    calm: Sequence[RequestOutcome], hot: Sequence[RequestOutcome], memory: Sequence[float], recovery: float
) -> Table:
    taken = [one for one in hot if one.error is None]
    refused = [one.seconds for one in hot if one.error == REFUSED]
    others = sorted({str(one.error) for one in hot if one.error not in (None, REFUSED)})
    before, after = _usual_tpot(calm), _usual_tpot(taken or calm)
    slowest = max(refused, default=0.0)
    rise = max(memory) - memory[0]
    longest_wait = max((one.ttft for one in taken), default=0.0)
    rows: list[list[Cell]] = [
        ["requests", len(hot), ""],
        ["taken and answered", len(taken), ""],
        ["refused with 429", len(refused), ""],
        ["other errors", ", ".join(others) or "none", _verdict(not others, "none")],
        ["slowest refusal, s", round(slowest, 3), _verdict(slowest < REFUSAL_SECONDS, f"< {REFUSAL_SECONDS:g}")],
        ["TPOT at capacity, ms", round(1e3 * before, 1), ""],
        ["TPOT under overload, ms", round(1e3 * after, 1), ""],
        ["its ratio", round(after / before, 2), _verdict(after <= TPOT_RATIO * before, f"≤ {TPOT_RATIO:g}")],
        ["memory at the begin, MiB", round(memory[0]), ""],
        ["memory's rise, at most, MiB", round(rise), _verdict(rise < MEMORY_RISE_MIB, f"< {MEMORY_RISE_MIB:g}")],
        ["longest wait for a first token, s", round(longest_wait, 1), ""],
        ["recovery, s", round(recovery, 1), _verdict(recovery <= RECOVERY_SECONDS, f"≤ {RECOVERY_SECONDS:g}")],
    ]
    return Table(title="Overload", columns=["", "measured", "bar"], rows=rows)


def _usual_tpot(outcomes: Sequence[RequestOutcome]) -> float:
    return float(np.median([one.tpot or 0.0 for one in outcomes]))


def _verdict(met: bool, bar: str) -> str:
    return f"{bar}: {'met' if met else 'not met'}"


if __name__ == "__main__":
    typer.run(main)
