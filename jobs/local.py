"""Run a job of this folder the way a cluster runs it, on a Ray cluster of this machine's own that lives as long as it.

    python jobs/local.py jobs/benchmark.py --profile quick

starts a head that listens on loopback only, submits the job with `ray job submit --working-dir .`, follows its log,
stops what it started, and ends with 0 exactly if the job succeeded. With RAY_API_SERVER_ADDRESS or RAY_ADDRESS set,
the job goes to that cluster instead and nothing is started.

The job runs in a copy of the working folder, so paths are made absolute: those of `--results` and `--output` (without
either: `--results results`, here), and every `PATH/…` or `NAME=PATH` that exists. A URI stays as it is.
"""

import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

START_SECONDS = 180
STOP_SECONDS = 60  # a head whose job still runs takes half of that
# Results travel as files, not as objects: a small store spares /dev/shm.
OBJECT_STORE_BYTES = 200_000_000
RESULT_OPTIONS = ("--results", "--output")
CLUSTER_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # nothing but this machine can connect
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray replaces 127.0.0.1 by the network card's address
}


def main(arguments: list[str]) -> int:
    """Run the job that `arguments` name; returns 0 if it succeeded."""
    if not arguments or not Path(arguments[0]).is_file():
        print("usage: python jobs/local.py JOB.py [ARGUMENT …], from the folder that holds jobs/", file=sys.stderr)
        return 2
    job = ["python", arguments[0], *with_absolute_paths(arguments[1:])]
    interruptible()
    try:
        if any(os.environ.get(name) for name in CLUSTER_VARIABLES):
            return submit(job, dict(os.environ))
        with local_cluster() as environment:
            return submit(job, environment)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def interruptible() -> None:
    """Has SIGINT and SIGTERM end this process in order, also where a shell has told it to ignore the first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave half a cluster behind
    raise KeyboardInterrupt


def with_absolute_paths(arguments: list[str]) -> list[str]:
    """The arguments as they must be for a job that runs in another folder."""
    made: list[str] = []
    for argument in arguments:
        name, equals, value = argument.rpartition("=")
        if "://" in value:
            made.append(argument)
            continue
        is_result = name in RESULT_OPTIONS or (made and made[-1] in RESULT_OPTIONS)
        is_path = (equals or "/" in value) and Path(value).expanduser().exists()
        made.append(f"{name}{equals}{Path(value).expanduser().absolute()}" if is_result or is_path else argument)
    if not any(argument.partition("=")[0] in RESULT_OPTIONS for argument in made):
        made += ["--results", str(Path("results").absolute())]
    return made


def submit(job: list[str], environment: dict[str, str]) -> int:
    """Submit `job` to the cluster that `environment` names, and follow its log to its end."""
    name = f"entmtp-{Path(job[1]).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    command = [_ray(), "job", "submit", "--working-dir", ".", "--submission-id", name]
    if commit := git_commit():
        command += ["--runtime-env-json", json.dumps({"env_vars": {"ENTMTP_GIT_COMMIT": commit}})]
    command += ["--", *job]
    print("+ ray " + shlex.join(command[1:]), flush=True)
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as follower:
        try:
            return follower.wait()
        except KeyboardInterrupt:
            print("stopping the job", flush=True)
            follower.terminate()
            with suppress(subprocess.TimeoutExpired):
                stop = [_ray(), "job", "stop", name]
                subprocess.run(
                    stop,
                    env=environment,
                    timeout=STOP_SECONDS,
                    capture_output=True,
                    start_new_session=True,
                    check=False,
                )
            raise


def git_commit() -> str | None:
    """The checkout's commit, which the uploaded copy does not know; None where there is no git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


@contextmanager
def local_cluster() -> Iterator[dict[str, str]]:
    """A head node on loopback; gives the environment in which `ray job submit` finds it, and stops it at the end."""
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's socket paths must stay under 107 characters
    gcs, dashboard, agent, client = free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    environment = os.environ | LOCAL_SETTINGS | {"RAY_TMPDIR": str(scratch), "RAY_API_SERVER_ADDRESS": address}
    # The job's `python` is the one that runs this file.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [_ray(), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    print(f"starting a local Ray cluster ({address})", flush=True)
    log = scratch / "start.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            command,
            env=environment | {"RAY_API_SERVER_ADDRESS": ""},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must reach us alone: we stop the head ourselves, after its job
            preexec_fn=_end_with_parent,
        )
    try:
        _wait_until_up(head, address, log)
        yield environment
    finally:
        print("stopping the local Ray cluster", flush=True)
        _stop(head)
        shutil.rmtree(scratch, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Different TCP ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _end_with_parent() -> None:
    """Have Linux send the head a SIGTERM if we die without a chance to stop it (`kill -9`)."""
    set_parent_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _wait_until_up(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if head.poll() is not None:
            break
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{address}/api/version", timeout=5):
            return
        time.sleep(0.5)
    last = [line for line in log.read_text().splitlines() if line.strip()][-10:]
    raise RuntimeError(f"the local Ray cluster did not start within {START_SECONDS} s:\n" + "\n".join(last))


def _stop(head: subprocess.Popen[bytes]) -> None:
    """`ray start --block` takes its processes down with it, and only its own, unlike `ray stop`."""
    head.terminate()
    try:
        head.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)  # the head leads its own session
        head.wait()


def _ray() -> str:
    """The `ray` command beside this interpreter."""
    command = Path(sys.executable).with_name("ray")
    if not command.exists():
        raise RuntimeError(f"{command} is missing; run `pip install 'entmtp[ray]'`")
    return str(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
