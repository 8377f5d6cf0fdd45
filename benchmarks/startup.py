#!/usr/bin/env python3
"""Time to the first token of a new process, everything cached; and of a service's first start, nothing cached.

    python -m benchmarks.startup

Whole processes, one after another: Python, the imports, the model, its kernels' self-test, the prompt, one token. The
service then starts once on an empty cache folder: it downloads the model, compiles and compares its kernels, and
measures the costs of steps.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.lib.record import RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.policies.step_cost import hardware_name
from entmtp.ray_head import free_ports

METHODS = ("autoregressive", "medusa", "hydra", "entmtp")
BAR_SECONDS = 3.5
BAR_MB = 130
SERVED_NAME = "smollm2-135m"
_COMMAND = [sys.executable, "-c", "from entmtp.cli import main; main()"]
_LONGEST_START = 900.0
_QUESTION = ["generate", "Why is the sky blue?", "--max-new-tokens", "1"]


def main(
    repetitions: Annotated[
        int, typer.Option(min=1, help="processes for each method, after one that fills the caches")
    ] = 5,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print the seconds that ``entmtp generate`` takes for one token."""
    with plain_errors("startup"):
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for repetition in range(1 + repetitions):
            for method in METHODS:
                taken = seconds_of(method)
                if repetition:
                    seconds[method].append(taken)
        rows = [
            [method, *(f"{f(taken):.2f}" for f in (min, statistics.median, max))] for method, taken in seconds.items()
        ]
        table = Table(title="seconds of one process", columns=["method", "least", "median", "most"], rows=rows)
        notes = [verdict(method, statistics.median(taken)) for method, taken in seconds.items()]
        ready, size, libraries = first_service()
        columns = ["seconds until ready", "cache folder, MB", "compiled libraries"]
        first = Table(
            title="a service on an empty cache", columns=columns, rows=[[f"{ready:.0f}", f"{size:.0f}", libraries]]
        )
        notes.append(f"{'PASS' if size <= BAR_MB else 'FAIL'}: the cache folder takes {size:.0f} MB (bar: {BAR_MB}).")
        title = "Start-up: one token of the bundled model, and a service"
        machine = hardware_name(torch.device("cpu"))
        deliver(make_record("startup", title, machine, [table, first], notes), record, uncommitted)


def seconds_of(method: str) -> float:
    """Runs one process.

    Raises:
        EntMTPError: if it fails.
    """
    began = time.perf_counter()
    done = subprocess.run([*_COMMAND, *_QUESTION, "--method", method], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EntMTPError(f"method: '{method}' ended with exit code {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - began


def first_service() -> tuple[float, float, int]:
    """Starts the service once on an empty cache folder.

    Returns the seconds until it answers, the folder's size in MB then, and how many libraries were compiled into it.

    Raises:
        EntMTPError: if it ends or is not ready in a quarter of an hour.
    """
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [*_COMMAND, "serve", "--port", str(port)]
        service = subprocess.Popen(command, env=os.environ | {"ENTMTP_CACHE": folder}, stdout=subprocess.DEVNULL)
        try:
            while not _answers(port):
                if service.poll() is not None or time.perf_counter() - began > _LONGEST_START:
                    raise EntMTPError(
                        f"serve: it was not ready after {time.perf_counter() - began:.0f} s; see its output"
                    )
                time.sleep(0.25)
            taken = time.perf_counter() - began
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            return taken, sum(path.stat().st_size for path in files) / 1e6, sum(path.suffix == ".so" for path in files)
        finally:
            service.send_signal(signal.SIGINT)
            service.wait()


def _answers(port: int) -> bool:
    """Whether the service answers a question; it lists its models before they are loaded."""
    requested = {"model": SERVED_NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(requested).encode(),
        {"Content-Type": "application/json"},
    )
    with suppress(OSError), urllib.request.urlopen(request, timeout=_LONGEST_START) as answer:
        return bool(answer.status == 200)
    return False


def verdict(method: str, median: float) -> str:
    """The bar, with the number."""
    word = "PASS" if median <= BAR_SECONDS else "FAIL"
    return f"{word}: {method} takes {median:.2f} s to its first token (bar: {BAR_SECONDS:g} s)."


if __name__ == "__main__":
    typer.run(main)
