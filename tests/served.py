"""The service as `make serve` starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jobs.local import free_ports

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
START_SECONDS = 300


class Served(NamedTuple):
    """Where a service is, and Ray's dashboard beside it."""

    address: str
    dashboard: str


@contextmanager
def started(*options: str) -> Iterator[Served]:
    """A service that `python -m deployments.local` has started."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "deployments.local", "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + START_SECONDS
    try:
        for line in process.stdout:
            lines.append(line)
            if "--address" in line or time.monotonic() > deadline:
                break
        ready = [line for line in lines if line.startswith("ready: ")]
        assert ready, "".join(lines)
        yield Served(ready[0].split()[-1], lines[-1].split()[-1])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    assert process.returncode == 130
