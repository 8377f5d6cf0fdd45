#!/usr/bin/env python3
"""Overhead of HTTP, Ray Serve and the API: the same prompts through the service and the library, in turns.

    python -m benchmarks.serving                                  # starts the service as `make serve` does
    python -m benchmarks.serving --url http://127.0.0.1:8000     # while it runs, on the same machine

One request at a time, greedy, streamed. The texts must be the same.
"""

from __future__ import annotations

import asyncio
import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from rich.progress import track

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from deployments.serve_local import CONFIG, read_config, service
from entmtp.cli_errors import plain_errors
from entmtp.decoding.outputs import Completion
from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.intervals import Estimate, paired_ratio, ratio
from entmtp.loading import load_method
from entmtp.loadtest.traffic import Endpoint, RequestOutcome, Traffic
from entmtp.method_spec import MethodSpec
from entmtp.models.loading.load import encode_chat
from entmtp.policies.step_cost import hardware_name
from entmtp.ray_head import free_ports
from entmtp.settings import EngineSettings, Kernels, SamplingParams
from entmtp.suites import PAPER_SUITES, scored_prompts

BAR = 1.10
NOTES = (
    "TPOT: ms per token behind the first, as the client sees it. TTFT: until the first text came. Both processes are on"
    " one machine and take turns; the ratio's interval is over prompts.",
)


def main(
    url: Annotated[str | None, typer.Option(help="of a service that runs; else one is started")] = None,
    model: Annotated[str, typer.Option(help="that it serves, which is the bundled one")] = "smollm2-135m",
    method: Annotated[str, typer.Option(help="that it serves it with")] = "entmtp-dynamic",
    prompts: Annotated[int, typer.Option(min=3, help="of each suite")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="times that each prompt is asked both ways")] = 3,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Measure the overhead of serving."""
    with plain_errors("serving", interrupted="nothing was recorded"), service_address(url) as address:
        texts = [one.text for name in PAPER_SUITES for one in scored_prompts(name, prompts)]
        engine, tokenizer = load_method(MethodSpec(method), print, EngineSettings())
        params = SamplingParams(temperature=0.0, max_tokens=tokens)
        traffic = Traffic(Endpoint("service", f"{address}/v1", model), texts, tokens, 600.0)
        served: list[list[RequestOutcome]] = [[] for _ in texts]
        alone: list[list[Completion]] = [[] for _ in texts]

        async def measure() -> None:
            for at in track(range(-1, rounds * len(texts)), "prompts"):
                number = max(0, at) % len(texts)
                (outcome,) = await traffic.closed([number], 1, lambda _: None)
                if outcome.error is not None:
                    raise EntMTPError(f"url: {address} fails ({outcome.error}); is the service running?")
                await asyncio.sleep(0.2)  # the other process' threads must have stopped to wait for work
                done = Completion()
                for _ in engine.stream(encode_chat(tokenizer, texts[number]), params, done):
                    pass
                time.sleep(0.2)
                if done.text != outcome.text:
                    raise EntMTPError(f"text: the service and the library differ on prompt {number}")
                if at >= 0:  # the first is the warm-up
                    served[number].append(outcome)
                    alone[number].append(done)

        asyncio.run(measure())
        machine = hardware_name(engine.backbone.device)
        deliver(
            make_record("serving", "What serving costs", machine, [_table(served, alone)], NOTES), record, uncommitted
        )


@contextmanager
def service_address(url: str | None, kernels: Kernels = "auto") -> Iterator[str]:
    """Address of the service at ``url``; without one, a service with these kernels is started for the block.

    Raises:
        EntMTPError: kernels were chosen for a service that runs.
    """
    if url is not None:
        if kernels != "auto":
            raise EntMTPError(f"kernels: '{kernels}' can't be set for the service at {url}; start it with them")
        yield url
        return
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as scratch:
        config = write_text(Path(scratch) / CONFIG.name, yaml.safe_dump(with_kernels(read_config(CONFIG), kernels)))
        with service(config, port) as started:
            yield started.address


def with_kernels(config: dict[str, Any], kernels: Kernels) -> dict[str, Any]:
    """A Serve config with these kernels in each engine."""
    changed = copy.deepcopy(config)
    for application in changed["applications"]:
        for engine in application["args"]["engines"]:
            engine["kernels"] = kernels
    return changed


def _table(served: list[list[RequestOutcome]], alone: list[list[Completion]]) -> Table:
    http = {
        "TPOT": np.array([np.median([one.tpot or 0.0 for one in each]) for each in served]),
        "TTFT": np.array([np.median([one.ttft for one in each]) for each in served]),
    }
    library = {
        "TPOT": np.array([np.median([one.seconds_per_token for one in each]) for each in alone]),
        "TTFT": np.array([np.median([one.first_token_seconds for one in each]) for each in alone]),
    }
    rows: list[list[Cell]] = []
    for name in http:
        found: Estimate = paired_ratio(http[name], library[name]).estimate()
        verdict = "" if name != "TPOT" else f"≤ {BAR:g}: {'met' if found.value <= BAR else 'not met'}"
        times = [f"{1e3 * float(np.mean(values[name])):.1f}" for values in (http, library)]
        rows.append([name, *times, ratio(found), verdict])
    return Table(
        title="One request at a time", columns=["", "HTTP, ms", "library, ms", "HTTP / library", "bar"], rows=rows
    )


if __name__ == "__main__":
    typer.run(main)
