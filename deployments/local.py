"""Serve on this machine, on a Ray cluster of its own that lives as long as it: what `make serve` runs.

python -m deployments.local                                   # the bundled model on http://127.0.0.1:8000
python -m deployments.local --config deployments/config.cpu.yaml --port 9000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import yaml

from deployments.auth import load_keys, refuse_strangers
from deployments.settings import AppArgs, EngineChanges
from entmtp.cli_errors import told_plainly
from entmtp.errors import EntMTPError
from entmtp.files import write_text
from jobs.local import interruptible, local_cluster

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "deployments" / "config.cpu.yaml"
FAST = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
"""Ray's settings for a short way through Serve: tokens go from process to process by gRPC and not through Ray's object
store, and in each of them through one event loop. `python -m benchmarks.serving` says what they are worth."""

_START_SECONDS = 600
_POLL_SECONDS = 1.0


def main(
    config: Annotated[Path, typer.Option(help="a Serve config file")] = CONFIG,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="instead of the file's")] = None,
) -> None:
    """Start the service, say when it is ready, and stop it at Ctrl-C or SIGTERM."""
    interruptible()
    with told_plainly("serve", interrupted="the service has stopped"), service(config, port) as running:
        print(_greeting(running, read_config(config)), flush=True)
        while True:
            time.sleep(3600)


class Running(NamedTuple):
    """Where a service is: its own URL, and that of Ray's dashboard, which `serve deploy` and `serve status` talk to."""

    address: str
    dashboard: str


@contextmanager
def service(config: Path = CONFIG, port: int | None = None) -> Iterator[Running]:
    """Runs the service for as long as the block lasts.

    Raises:
        EntMTPError: the file is wrong, the port is taken, or the service can't be started.
    """
    given = read_config(config)
    options = given.setdefault("http_options", {})
    options["port"] = port or options.get("port", 8000)
    address = f"http://{options.setdefault('host', '127.0.0.1')}:{options['port']}"
    _refuse_taken(address)
    for application in given["applications"]:
        args = AppArgs.parse(**application["args"])
        refuse_strangers(options["host"], load_keys(args.api_keys_file), args.allow_anonymous)
    os.environ |= node_environment(dict(os.environ))
    with local_cluster() as environment, tempfile.TemporaryDirectory() as scratch:
        path = write_text(Path(scratch) / "config.yaml", yaml.safe_dump(given))
        _deploy(path, environment)
        running = Running(address, environment["RAY_API_SERVER_ADDRESS"])
        _wait_until_ready(running)
        yield running


def node_environment(given: Mapping[str, str]) -> dict[str, str]:
    """What Ray's processes must find: this checkout, wherever they are called from, the proxies' door, and `FAST`.

    What is ``given`` goes before.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), given.get("PYTHONPATH")]))
    door = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.door.middlewares"}
    return FAST | {name: given[name] for name in FAST if name in given} | door | {"PYTHONPATH": path}


def read_config(path: Path) -> dict[str, Any]:
    """A Serve config file whose applications' arguments have been checked, so that mistakes are told before Ray starts.

    Raises:
        EntMTPError: names the file and what is wrong with it.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        applications = found["applications"]
        arguments = [application["args"] for application in applications]
        changes = [
            deployment.get("user_config") or {}
            for application in applications
            for deployment in application.get("deployments", [])
        ]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise EntMTPError(f"config: {path} is not a Serve config with applications and args ({error})") from error
    for given in arguments:
        AppArgs.parse(**given)
    for given in changes:
        EngineChanges.parse(**given)
    return dict(found)


def _refuse_taken(address: str) -> None:
    with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
        raise EntMTPError(f"port: something answers on {address} already; stop it, or give another --port")


def _deploy(config: Path, environment: dict[str, str]) -> None:
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(config)]
    command += ["--address", environment["RAY_API_SERVER_ADDRESS"]]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EntMTPError(f"config: Ray Serve refuses it: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def _wait_until_ready(running: Running) -> None:
    """Follows the applications until all run and every engine has a replica.

    Raises:
        EntMTPError: one can't be started, with Serve's own reason, or it takes too long.
    """
    print("the first start on a machine measures what its steps cost, which takes a minute", flush=True)
    told = ""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        applications = _get(f"{running.dashboard}/api/serve/applications/").get("applications", {})
        for name, application in applications.items():
            if application["status"] in {"DEPLOY_FAILED", "UNHEALTHY"}:
                raise EntMTPError(f"application {name}: {_reason(application)}")
        states = ", ".join(f"{name} {one['status'].lower()}" for name, one in applications.items())
        if states != told:
            print(states, flush=True)
            told = states
        if applications and _get(f"{running.address}/ready"):
            return
        time.sleep(_POLL_SECONDS)
    raise EntMTPError(f"service: it was not ready within {_START_SECONDS} s; the last that was heard: {told}")


def _get(url: str) -> dict[str, Any]:
    with suppress(urllib.error.URLError, OSError, ValueError), urllib.request.urlopen(url, timeout=10) as response:
        return dict(json.load(response))
    return {}


def _reason(application: dict[str, Any]) -> str:
    """The last line of what Serve knows, which is the error itself."""
    messages = [application.get("message", ""), *(one["message"] for one in application["deployments"].values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    mistakes = [line for line in lines if "EntMTPError" in line]
    return (mistakes or lines or ["it can't be started"])[-1]


def _greeting(running: Running, config: dict[str, Any]) -> str:
    address = running.address
    given = config["applications"][0]["args"]
    model, logs = given["engines"][0]["model_name"], AppArgs.parse(**given).log_folder.expanduser()
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    return f"""
ready: {address}

  curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

Any OpenAI client works with base_url {address}/v1; {address}/docs lists everything. Ctrl-C stops the service.
Every request has a line in {logs}, which is kept.
To change what is served meanwhile: serve deploy FILE --address {running.dashboard}"""


if __name__ == "__main__":
    typer.run(main)
