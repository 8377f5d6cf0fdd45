"""Parts around a local Ray head: ports, interrupts, the end of its processes, logs. No Ray runs here."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from entmtp import ray_head
from entmtp.errors import EntMTPError
from entmtp.ray_head import MAX_STORED_LOGS, free_ports, handle_stop_signals, kill_tree, local_head, store_logs

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENTMTP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def _handlers() -> Iterator[None]:
    given = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in given.items():
        signal.signal(number, handler)


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(8))) == 8


def test_the_tree_of_a_process_is_killed_whatever_session_its_parts_are_in() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        kill_tree(parent.pid)
        assert parent.wait(10) == -signal.SIGKILL
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    kill_tree(parent.pid)  # what has ended already is no mistake


def test_the_logs_of_the_latest_runs_are_kept(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = []
    for number in range(MAX_STORED_LOGS + 2):
        monkeypatch.setattr(time, "strftime", lambda _, number=number: f"20260101-00000{number}")
        (tmp_path / "start.log").write_text(str(number))
        stored.append(store_logs([tmp_path / "start.log", tmp_path / "absent"]))
    assert not (tmp_path / "start.log").exists()
    assert sorted((cache / "logs").iterdir()) == stored[-MAX_STORED_LOGS:]
    assert [(one / "start.log").read_text() for one in stored[-MAX_STORED_LOGS:]] == [
        str(number) for number in range(2, MAX_STORED_LOGS + 2)
    ]


def test_a_head_that_ends_at_once_is_told_with_its_last_line_and_its_logs_are_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\necho a line\necho no room; echo\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(ray_head, "ray_command", lambda: [str(program)])
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(EntMTPError, match=r"ended with exit code 3 \(no room\)"), local_head(said.append):
        pass
    assert time.monotonic() - began < 10
    assert said[0].startswith("starting a local Ray cluster (http://127.0.0.1:")
    assert "no room" in (Path(said[-1].split()[-1]) / "start.log").read_text()


@pytest.mark.usefixtures("cache")
def test_a_closed_terminal_leaves_no_head_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(ray_head, "ray_command", lambda: [str(program)])
    monkeypatch.setattr(ray_head, "_wait_until_up", lambda *reported: None)
    open_terminal = True

    def say(line: str) -> None:
        if not open_terminal:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError), local_head(say) as head:
        open_terminal = False
    assert head.process.poll() is not None
    assert not head.logs.parents[2].exists()


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EntMTPError, match=r"pip install 'entmtp\[ray\]'"):
        ray_head.ray_command()


def test_without_ray_a_head_leaves_no_folder_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**options: str) -> NoReturn:
        raise AssertionError("no folder is to be made")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tempfile, "mkdtemp", made)
    with pytest.raises(EntMTPError, match=r"pip install 'entmtp\[ray\]'"), local_head(print):
        pass


@pytest.mark.usefixtures("_handlers")
def test_the_first_two_interrupts_count_and_no_more() -> None:
    handle_stop_signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
