"""A Ray head node on this machine's loopback interface, started and stopped with a block of code."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import psutil

from entmtp.errors import EntMTPError
from entmtp.persistent_paths import cache_folder

START_SECONDS = 180
# Results are files, not Ray objects, so a small object store is enough and spares /dev/shm.
OBJECT_STORE_BYTES = 200_000_000
LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # only this machine can connect
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise Ray replaces 127.0.0.1 by the network card's address
}
MAX_STORED_LOGS = 5
"""Number of runs whose logs stay in the cache; older ones are deleted."""

_POLL_SECONDS = 0.2
_KILL_SECONDS = 10
_KILL_POLL_SECONDS = 0.02


class Head(NamedTuple):
    """A running head.

    Attributes:
        address: URL of the dashboard, to which jobs are submitted.
        environment: environment variables with which Ray's commands find the head.
        logs: folder of Ray's logs while the head runs.
        process: ``ray start``, the ancestor of all other processes of the head.
    """

    address: str
    environment: dict[str, str]
    logs: Path
    process: subprocess.Popen[bytes]

    def check(self) -> None:
        """Raise EntMTPError if the head has exited by itself."""
        if self.process.poll() is not None:
            raise EntMTPError(
                f"ray: the local cluster has ended with exit code {self.process.returncode}; see its logs"
            )


@contextmanager
def local_head(say: Callable[[str], None], settings: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head on loopback; kill it at the end of the block and store its logs.

    Args:
        say: receives one line of progress for each step.
        settings: further environment variables for all of the head's processes.

    Raises:
        EntMTPError: Ray is not installed, or the head does not start.
    """
    ports = dict(zip(("gcs", "dashboard", "agent", "client", "autoscaler", "metrics"), free_ports(6)))
    command = _start_command(ports)
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's socket paths must stay under 107 characters
    address = f"http://127.0.0.1:{ports['dashboard']}"
    environment = os.environ | LOCAL_SETTINGS | {"RAY_TMPDIR": str(scratch), "RAY_API_SERVER_ADDRESS": address}
    environment |= {"AUTOSCALER_METRIC_PORT": str(ports["autoscaler"]), "DASHBOARD_METRIC_PORT": str(ports["metrics"])}
    # Jobs call `python`; this makes it the interpreter that runs this file.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment |= settings or {}
    say(f"starting a local Ray cluster ({address})")
    log = scratch / "start.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            command,
            env=environment | {"RAY_API_SERVER_ADDRESS": ""},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must reach this process only, which then stops the head itself
            preexec_fn=_end_with_parent,
        )
    logs = scratch / "ray" / "session_latest" / "logs"
    try:
        _wait_until_up(head, address, log)
        yield Head(address, environment, logs, head)
    finally:
        with _uninterrupted():
            kill_tree(head.pid)
            head.wait()
            stored = store_logs([log, logs.resolve()])
            shutil.rmtree(scratch, ignore_errors=True)
            # Print last: if the terminal is closed and this fails, the cluster has already ended.
            say(f"stopped the local Ray cluster; the logs of Ray are in {stored}")


def _start_command(ports: Mapping[str, int]) -> list[str]:
    command = [*ray_command(), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={ports['gcs']}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={ports['dashboard']}"]
    command += [f"--dashboard-agent-listen-port={ports['agent']}", f"--ray-client-server-port={ports['client']}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    return command


def ray_command() -> list[str]:
    """First arguments of Ray's command line, run with this interpreter wherever its packages are installed.

    Raises:
        EntMTPError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise EntMTPError("ray: it is not installed; run pip install 'entmtp[ray]'")
    return [sys.executable, "-P", "-m", "ray.scripts.scripts"]


def handle_stop_signals() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt, even if the shell made this process ignore SIGINT.

    The first signal stops in order, the second at once. Further signals are ignored, so that clean-up always finishes.
    """
    left = 2

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal left
        left -= 1
        if not left:
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM within the block."""
    given = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in given.items():
            signal.signal(number, handler)


def free_ports(count: int) -> list[int]:
    """Distinct free TCP ports of the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants.

    Ray's own shutdown can wait half a minute for idle processes. All processes are suspended first, so that none of
    them starts another one meanwhile.
    """
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        suspended: set[psutil.Process] = set()
        while found := {root, *root.children(recursive=True)} - suspended:
            for one in found:
                with suppress(psutil.NoSuchProcess):
                    one.suspend()
            suspended |= found
        for one in suspended:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        deadline = time.monotonic() + _KILL_SECONDS
        while any(_runs(one) for one in suspended) and time.monotonic() < deadline:
            time.sleep(_KILL_POLL_SECONDS)


def _runs(process: psutil.Process) -> bool:
    """Whether a process still runs. A zombie counts as ended, as it stays listed where nothing reaps orphans."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def store_logs(sources: list[Path]) -> Path:
    """Move log files and folders to a new folder in the cache; the latest :data:`MAX_STORED_LOGS` folders stay."""
    folder = cache_folder() / "logs"
    stored = folder / f"ray-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    stored.mkdir(parents=True)
    for source in sources:
        if source.exists():
            shutil.move(source, stored / source.name)
    for old in sorted(folder.glob("ray-*"))[:-MAX_STORED_LOGS]:
        shutil.rmtree(old, ignore_errors=True)
    return stored


def _end_with_parent() -> None:
    """Have Linux send the head a SIGTERM if this process dies without a chance to stop it (`kill -9`)."""
    set_parent_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _wait_until_up(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{address}/api/version", timeout=5):
            return
        time.sleep(_POLL_SECONDS)
    how = f"was not ready in {START_SECONDS} s" if head.poll() is None else f"ended with exit code {head.returncode}"
    last = [line.strip() for line in log.read_text().splitlines() if line.strip()][-1:]
    raise EntMTPError(f"ray: the local cluster {how} ({''.join(last) or 'it said nothing'}); see its logs")
