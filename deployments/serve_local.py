"""Serve models on this machine, on a Ray cluster that is started and stopped with the service (`entmtp serve`).

entmtp serve                                              # the bundled model on http://127.0.0.1:8000
python -m deployments.serve_local --config deployments/config.cpu.yaml --port 9000
"""

from __future__ import annotations

import os
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from deployments import TESTED_RAY, stop_file
from deployments.addresses import ONGOING_PATH, check_free, exposed_sockets, is_loopback, url
from deployments.http.auth import load_keys, require_keys
from deployments.ready import RunningService, ready_message
from deployments.serve_rest import ServeRest, get_json
from deployments.settings import AppArgs, EngineChanges
from deployments.start_progress import VARIABLE, LineFollower
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.models.loading.load import resolve_model
from entmtp.ray_head import Head, handle_stop_signals, local_head

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).resolve().with_name("config.cpu.yaml")
FAST = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
"""Ray's settings for low latency: tokens go between processes by gRPC instead of Ray's object store, and through one
event loop in each process. `python -m benchmarks.serving` measures their effect."""

_START_SECONDS = 600
_POLL_SECONDS = 0.25
_WATCH_SECONDS = 1.0
_LEAVE_SECONDS = 5.0
"""Time for replicas without requests to end and to flush their logs."""

_SILENT_SECONDS = 30.0
"""Time after which a proxy that does not answer is given up."""

Report = Callable[[str], None]
"""Receives one line of progress."""


def main(
    config: Annotated[Path, typer.Option(help="a Serve config file")] = CONFIG,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="instead of the file's")] = None,
) -> None:
    """Serve models on this machine with an OpenAI-compatible API until Ctrl-C or SIGTERM."""
    handle_stop_signals()
    with plain_errors("serve", interrupted="the service has stopped"), _started(config, port) as (running, head):
        print(ready_message(running, read_config(config)), flush=True)
        while True:
            head.check()
            time.sleep(_WATCH_SECONDS)


@contextmanager
def service(config: Path = CONFIG, port: int | None = None) -> Iterator[RunningService]:
    """Run the service within the block.

    Raises:
        EntMTPError: the file is wrong, the port is taken, or the service can't be started.
    """
    with _started(config, port) as (running, _):
        yield running


@contextmanager
def _started(config: Path, port: int | None) -> Iterator[tuple[RunningService, Head]]:
    given = read_config(config)
    options = given.setdefault("http_options", {})
    options["port"] = port or options.get("port", 8000)
    host, port = options.setdefault("host", "127.0.0.1"), options["port"]
    has_keys = _check_applications(given, host)
    check_free(host, port)
    report = partial(print, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        progress, stop = Path(scratch) / "progress", Path(scratch) / "stopping"
        settings = node_environment(dict(os.environ)) | {VARIABLE: str(progress), stop_file.VARIABLE: str(stop)}
        with local_head(report, settings) as head:
            report(f"Ray runs (dashboard: {head.address}); starting the service")
            rest = ServeRest(head.address)
            rest.deploy(given)
            running = RunningService(url(host, port), head.address, head.logs, has_keys)
            _wait_until_ready(running, rest, head, LineFollower(progress), report)
            _refuse_exposed(head, None if is_loopback(host) else port)
            try:
                yield running, head
            finally:
                _finish_requests(running, rest, head, given, stop, report)


def node_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Environment of Ray's processes: proxy middleware, path of this code, and `FAST`, which ``given`` overrides.

    An installed package needs no PYTHONPATH, which would put its folder before Python's own modules.
    """
    middleware = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.http.proxy_middleware.middlewares"}
    made = FAST | {name: given[name] for name in FAST if name in given} | middleware
    if str(ROOT) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        made["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), given.get("PYTHONPATH")]))
    return made


def read_config(path: Path) -> dict[str, Any]:
    """Read a Serve config file and validate its applications' arguments, so that errors appear before Ray starts.

    Raises:
        EntMTPError: the file can't be read, or an argument is wrong.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        applications = found["applications"]
        arguments = [application["args"] for application in applications]
        changes = [
            deployment.get("user_config") or {}
            for application in applications
            for deployment in application.get("deployments", [])
        ]
        options = dict(found.get("http_options") or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise EntMTPError(f"config: {path} is not a Serve config with applications and args ({error})") from error
    if not arguments:
        raise EntMTPError(f"config: {path} names no application; see {CONFIG.name}")
    for given in arguments:
        AppArgs.parse(**given)
    for given in changes:
        EngineChanges.parse(**given)
    _check_options(options)
    return dict(found) | {"http_options": options}


def _check_options(options: Mapping[str, Any]) -> None:
    port, host = options.get("port", 8000), options.get("host", "127.0.0.1")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise EntMTPError(f"http_options.port: {port!r} is not accepted; give a number from 1 to 65535")
    if not isinstance(host, str) or not host:
        raise EntMTPError(f"http_options.host: {host!r} is not accepted; give an address, such as 127.0.0.1")


def _check_applications(given: Mapping[str, Any], host: str) -> bool:
    """Check keys and models before Ray starts; returns whether clients need an API key."""
    has_keys = False
    for application in given["applications"]:
        args = AppArgs.parse(**application["args"])
        keys = load_keys(args.api_keys_file)
        require_keys(host, keys, args.allow_anonymous)
        has_keys = has_keys or bool(keys)
        for model in {one.model for one in args.engines}:
            resolve_model(model)
    return has_keys


def _wait_until_ready(
    running: RunningService, rest: ServeRest, head: Head, progress: LineFollower, report: Report
) -> None:
    """Wait until every engine has a replica, and report progress.

    Raises:
        EntMTPError: an application can't be started, with Serve's own reason, or it takes too long.
    """
    known: dict[str, str] = {}
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        head.check()
        for line in progress.new_lines():
            report(line)
        states = rest.states()
        for name in states.keys() | known.keys():
            if states.get(name) != known.get(name):
                report(f"application {name}: {states.get(name, 'gone')}")
        known = states
        if states and get_json(f"{running.address}/ready"):
            return
        time.sleep(_POLL_SECONDS)
    raise EntMTPError(f"service: it was not ready within {_START_SECONDS} s; its last states: {known}")


def _refuse_exposed(head: Head, public: int | None) -> None:
    """Raise EntMTPError if other machines could reach another port than the service's own."""
    for one in exposed_sockets(head.process.pid):
        if one.port != public:
            raise EntMTPError(
                f"ray: its process {one.process} listens on {one.host}:{one.port}, where other machines may run code;"
                f" pip install 'ray=={TESTED_RAY}'"
            )


def _finish_requests(
    running: RunningService, rest: ServeRest, head: Head, config: Mapping[str, Any], stop: Path, report: Report
) -> None:
    """Wait for running requests, then remove the applications. Errors are ignored, so that Ray is always stopped.

    The engines must run until then, as a request may have calls that have not started yet.
    """
    with suppress(EntMTPError):
        head.check()
        stop.touch()
        _wait_for_requests(running, head, _longest_seconds(config), report)
        rest.deploy(dict(config) | {"applications": []})
        end = time.monotonic() + _LEAVE_SECONDS
        while not rest.nothing_runs() and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)


def _wait_for_requests(running: RunningService, head: Head, timeout: float, report: Report) -> None:
    """Wait until the proxy serves no requests, has not answered for long, or ``timeout`` seconds have passed."""
    last: int | None = None
    began = answered = time.monotonic()
    while time.monotonic() - began < timeout and time.monotonic() - answered < _SILENT_SECONDS:
        head.check()
        ongoing = _ongoing(running)
        if ongoing is not None:
            answered = time.monotonic()
            if last is None:
                first = f"stopping: finishing {_requests(ongoing)}; Ctrl-C again stops at once"
                report(first if ongoing else "stopping")
            elif ongoing != last:
                report(f"stopping: {_requests(ongoing)} left")
            if not ongoing:
                return
            last = ongoing
        time.sleep(_POLL_SECONDS)


def _longest_seconds(config: Mapping[str, Any]) -> float:
    """Longest deadline of a request among the applications."""
    return max(AppArgs.parse(**one["args"]).limits.request_seconds for one in config["applications"])


def _requests(count: int) -> str:
    return f"{count} request{'s' * (count != 1)}"


def _ongoing(running: RunningService) -> int | None:
    """Number of requests for text that the proxy is serving; None if it does not answer."""
    return get_json(running.address + ONGOING_PATH).get("requests")


if __name__ == "__main__":
    typer.run(main)
