#!/usr/bin/env python3
"""Time to the first token of a new process, everything cached.

    python -m benchmarks.startup

Whole processes, one after another: Python, the imports, the model, its kernels' self-test, the prompt, one token.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Annotated

import torch
import typer

from benchmarks.lib.record import RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.policies.step_cost import hardware_name

METHODS = ("autoregressive", "medusa", "hydra", "entmtp")
BAR_SECONDS = 3.5
_COMMAND = [sys.executable, "-c", "from entmtp.cli import main; main()"]
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
        title = "Start-up: one token of the bundled model, everything cached"
        deliver(make_record("startup", title, hardware_name(torch.device("cpu")), [table], notes), record, uncommitted)


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


def verdict(method: str, median: float) -> str:
    """The bar, with the number."""
    word = "PASS" if median <= BAR_SECONDS else "FAIL"
    return f"{word}: {method} takes {median:.2f} s to its first token (bar: {BAR_SECONDS:g} s)."


if __name__ == "__main__":
    typer.run(main)
