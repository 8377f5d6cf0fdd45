"""Serve on this machine, on a Ray cluster of its own that lives as long as it: what `entmtp serve` runs.

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
from deployments.ready import Running, ready_message
from deployments.serve_rest import ServeRest, get_json
from deployments.settings import AppArgs, EngineChanges
from deployments.start_progress import VARIABLE, Lines
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
"""Ray's settings for a short way through Serve: tokens go from process to process by gRPC and not through Ray's object
store, and in each of them through one event loop. `python -m benchmarks.serving` says what they are worth."""

_START_SECONDS = 600
_POLL_SECONDS = 0.25
_WATCH_SECONDS = 1.0
_LEAVE_SECONDS = 5.0
"""Replicas without requests end in so long, and write the rest of their logs."""

_SILENT_SECONDS = 30.0
"""A proxy that says nothing for so long is not waited for."""

Say = Callable[[str], None]


def main(
    config: Annotated[Path, typer.Option(help="a Serve config file")] = CONFIG,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="instead of the file's")] = None,
) -> None:
    """Serve models on this machine behind an OpenAI-compatible API until Ctrl-C or SIGTERM."""
    handle_stop_signals()
    with plain_errors("serve", interrupted="the service has stopped"), _started(config, port) as (running, head):
        print(ready_message(running, read_config(config)), flush=True)
        while True:
            head.check()
            time.sleep(_WATCH_SECONDS)


@contextmanager
def service(config: Path = CONFIG, port: int | None = None) -> Iterator[Running]:
    """Runs the service for as long as the block lasts.

    Raises:
        EntMTPError: the file is wrong, the port is taken, or the service can't be started.
    """
    with _started(config, port) as (running, _):
        yield running


@contextmanager
def _started(config: Path, port: int | None) -> Iterator[tuple[Running, Head]]:
    given = read_config(config)
    options = given.setdefault("http_options", {})
    options["port"] = port or options.get("port", 8000)
    host, port = options.setdefault("host", "127.0.0.1"), options["port"]
    has_keys = _check_applications(given, host)
    check_free(host, port)
    say = partial(print, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        progress, stop = Path(scratch) / "progress", Path(scratch) / "stopping"
        settings = node_environment(dict(os.environ)) | {VARIABLE: str(progress), stop_file.VARIABLE: str(stop)}
        with local_head(say, settings) as head:
            say(f"Ray runs (dashboard: {head.address}); starting the service")
            rest = ServeRest(head.address)
            rest.deploy(given)
            running = Running(url(host, port), head.address, head.logs, has_keys)
            _wait_until_ready(running, rest, head, Lines(progress), say)
            _refuse_exposed(head, None if is_loopback(host) else port)
            try:
                yield running, head
            finally:
                _finish_requests(running, rest, head, given, stop, say)


def node_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Environment of Ray's processes: where this code is, the proxies' door, and `FAST`; what is ``given`` wins.

    Installed packages are found without; to name their folder would put it before Python's own modules.
    """
    door = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.http.proxy_middleware.middlewares"}
    made = FAST | {name: given[name] for name in FAST if name in given} | door
    if str(ROOT) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        made["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), given.get("PYTHONPATH")]))
    return made


def read_config(path: Path) -> dict[str, Any]:
    """A Serve config file whose applications' arguments have been checked, so that mistakes are told before Ray starts.

    Raises:
        EntMTPError: names the file and what is wrong with it.
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
    """Looks for what can be known to fail before Ray starts; returns whether clients need keys."""
    has_keys = False
    for application in given["applications"]:
        args = AppArgs.parse(**application["args"])
        keys = load_keys(args.api_keys_file)
        require_keys(host, keys, args.allow_anonymous)
        has_keys = has_keys or bool(keys)
        for model in {one.model for one in args.engines}:
            resolve_model(model)
    return has_keys


def _wait_until_ready(running: Running, rest: ServeRest, head: Head, progress: Lines, say: Say) -> None:
    """Says what happens until every engine has a replica.

    Raises:
        EntMTPError: an application can't be started, with Serve's own reason, or it takes too long.
    """
    known: dict[str, str] = {}
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        head.check()
        for line in progress.new():
            say(line)
        states = rest.states()
        for name in states.keys() | known.keys():
            if states.get(name) != known.get(name):
                say(f"application {name}: {states.get(name, 'gone')}")
        known = states
        if states and get_json(f"{running.address}/ready"):
            return
        time.sleep(_POLL_SECONDS)
    raise EntMTPError(f"service: it was not ready within {_START_SECONDS} s; the last that was heard: {known}")


def _refuse_exposed(head: Head, public: int | None) -> None:
    """Raises EntMTPError where other machines could reach more than the service's own port."""
    for one in exposed_sockets(head.process.pid):
        if one.port != public:
            raise EntMTPError(
                f"ray: its process {one.process} listens on {one.host}:{one.port}, where other machines may run code;"
                f" pip install 'ray=={TESTED_RAY}'"
            )


def _finish_requests(
    running: Running, rest: ServeRest, head: Head, config: Mapping[str, Any], stop: Path, say: Say
) -> None:
    """Takes the applications down when their requests have ended; what goes wrong must not keep Ray from stopping.

    Not before: a request may have answers whose turn has not come, and they need the engines.
    """
    with suppress(EntMTPError):
        head.check()
        stop.touch()
        _wait_for_requests(running, head, _longest_seconds(config), say)
        rest.deploy(dict(config) | {"applications": []})
        end = time.monotonic() + _LEAVE_SECONDS
        while not rest.nothing_runs() and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)


def _wait_for_requests(running: Running, head: Head, most: float, say: Say) -> None:
    """Returns when the proxy passes none on any more, has been silent for long, or after ``most`` seconds."""
    known: int | None = None
    begun = heard = time.monotonic()
    while time.monotonic() - begun < most and time.monotonic() - heard < _SILENT_SECONDS:
        head.check()
        ongoing = _ongoing(running)
        if ongoing is not None:
            heard = time.monotonic()
            if known is None:
                say(f"stopping: finishing {_requests(ongoing)}; Ctrl-C again stops at once" if ongoing else "stopping")
            elif ongoing != known:
                say(f"stopping: {_requests(ongoing)} left")
            if not ongoing:
                return
            known = ongoing
        time.sleep(_POLL_SECONDS)


def _longest_seconds(config: Mapping[str, Any]) -> float:
    """Deadline of the requests that may take longest."""
    return max(AppArgs.parse(**one["args"]).limits.request_seconds for one in config["applications"])


def _requests(count: int) -> str:
    return f"{count} request{'s' * (count != 1)}"


def _ongoing(running: Running) -> int | None:
    """Requests for text that the proxy is passing on; None where it does not answer."""
    return get_json(running.address + ONGOING_PATH).get("requests")


if __name__ == "__main__":
    typer.run(main)
