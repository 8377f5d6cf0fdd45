"""The service as `make serve` starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
import yaml

from entmtp.files import write_text
from entmtp.ray_head import free_ports
from tests.helpers.paths import ROOT

MODEL = "smollm2-135m"
READY = "Ctrl-C"
"""Start of the last line of the ready message."""
START_SECONDS = 900.0
"""More than the service gives itself: a slow machine is no failure, and the service's own error comes first."""
WAIT_SECONDS = 300.0
_SETTLED_SECONDS = 5.0
"""For whatever a running service does."""


class ServiceProcess:
    """A command that serves until it is interrupted, and the lines that it has written."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        # A thread of its own, so that a service that writes nothing cannot block the wait for a line.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, beginning: str, seconds: float = START_SECONDS) -> str:
        """Wait for a line with this beginning; fail with all lines if the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            if ended:
                self._reader.join(10)
            for line in self.lines:
                if line.startswith(beginning):
                    return line
            if ended or time.monotonic() > deadline:
                why = f"ended with exit code {self.process.returncode}" if ended else f"took over {seconds:.0f} s"
                raise AssertionError("\n".join([f"no line '{beginning}…': the service {why}", *self.lines]))
            time.sleep(0.1)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ended(self, seconds: float) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def kill(self) -> None:
        """Stop the service at once if it still runs."""
        if self.process.poll() is None:
            self.interrupt()
            self.interrupt()
            self.ended(WAIT_SECONDS)


class Service(ServiceProcess):
    """`entmtp serve` with a configuration file, and all processes that were seen to descend from it.

    Attributes:
        url: its address.
        first_metrics: its metrics before the first request.
    """

    def __init__(self, config: Path) -> None:
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "entmtp.cli", "serve", "--config", str(config), "--port", str(port)]
        super().__init__(command, config.parent)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.first_metrics = ""
        self.family: set[psutil.Process] = set()

    def wait_until_ready(self) -> None:
        self.wait_for(READY)
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            self.first_metrics = response.read().decode()

    @property
    def dashboard(self) -> str:
        """Address of its Ray dashboard."""
        return self.wait_for("dashboard: ").partition(": ")[2]

    def request(self, **fields: Any) -> urllib.request.Request:
        """A plain completion with these fields."""
        body = json.dumps({"model": MODEL} | fields).encode()
        return urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})

    def change(self, config: Path, **user_config: Any) -> None:
        """Deploy the configuration of its start again, with other settings of its engine."""
        given = yaml.safe_load(config.read_text())
        given["http_options"]["port"] = self.port
        (application,) = given["applications"]
        engine = application["args"]["engines"][0]["name"]
        application["deployments"] = [{"name": engine, "user_config": user_config}]
        path = write_text(config.with_name("changed.yaml"), yaml.safe_dump(given))
        command = [str(Path(sys.executable).with_name("serve")), "deploy", str(path), "--address", self.dashboard]
        subprocess.run(command, capture_output=True, check=True)

    def wait_until_ready_again(self) -> None:
        """Wait until the service has been ready for some seconds: a changed configuration takes effect with a delay."""
        deadline = time.monotonic() + WAIT_SECONDS
        since = time.monotonic()
        while time.monotonic() < since + _SETTLED_SECONDS:
            try:
                urllib.request.urlopen(f"{self.url}/ready").close()
            except urllib.error.HTTPError:
                since = time.monotonic()
            if time.monotonic() > deadline:
                raise AssertionError(f"the service was not ready for {_SETTLED_SECONDS} s at a time")
            time.sleep(0.2)

    def look(self) -> set[psutil.Process]:
        """All processes that were seen, now and before, to descend from it."""
        self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
        return self.family

    def left(self) -> list[psutil.Process]:
        """Processes of it that run although it has ended."""
        return [one for one in self.family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def started(config: Path) -> Iterator[Service]:
    """Start a service, which need not be ready, and stop it at once at the end of the block."""
    service = Service(config)
    try:
        yield service
    finally:
        service.kill()


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
