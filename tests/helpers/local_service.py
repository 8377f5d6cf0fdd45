"""The service as `make serve` starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai

from entmtp.ray_head import free_ports
from tests.helpers.paths import ROOT

MODEL = "smollm2-135m"
START_SECONDS = 300


class Served(NamedTuple):
    """Addresses of a running service and of its Ray dashboard."""

    address: str
    dashboard: str


@contextmanager
def started(*options: str) -> Iterator[Served]:
    """Start a service by `python -m deployments.serve_local`, and stop it at the end of the block."""
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
        yield Served(_value("ready", lines), _value("dashboard", lines))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    assert process.returncode == 130


def _value(name: str, lines: list[str]) -> str:
    """Value of a line of the ready message."""
    found = [line.partition(": ")[2].strip() for line in lines if line.startswith(f"{name}: ")]
    assert found, "".join(lines)
    return found[0]


def read_request_log(folder: Path) -> list[dict[str, Any]]:
    """Read all lines of the request log."""
    return [json.loads(line) for path in folder.iterdir() for line in path.read_text().splitlines()]


def chat(client: openai.OpenAI, prompt: str, tokens: int = 24, **options: Any) -> str:
    """Answer to a prompt, greedy by default."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens,
        **({"temperature": 0} | options),
    )
    return str(answer.choices[0].message.content)
