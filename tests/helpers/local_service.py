"""The service as `make serve` starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from entmtp.ray_head import free_ports
from tests.helpers.paths import ROOT

MODEL = "smollm2-135m"
START_SECONDS = 300


class Served(NamedTuple):
    """Where a service is, and Ray's dashboard beside it."""

    address: str
    dashboard: str


@contextmanager
def started(*options: str) -> Iterator[Served]:
    """A service that `python -m deployments.serve_local` has started."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "deployments.serve_local", "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + START_SECONDS
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C") or time.monotonic() > deadline:
                break
        yield Served(_told("ready", lines), _told("dashboard", lines))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    assert process.returncode == 130


def _told(name: str, lines: list[str]) -> str:
    """The rest of a line of the ready message."""
    found = [line.partition(": ")[2].strip() for line in lines if line.startswith(f"{name}: ")]
    assert found, "".join(lines)
    return found[0]
