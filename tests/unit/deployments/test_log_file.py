"""Lines of the request log: on disk at once, kept, and bounded."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployments import log_file, proxy_settings
from deployments.log_file import LogFile, ProxyLog
from deployments.proxy_settings import ProxySettings, ProxySettingsReader
from deployments.settings import AppArgs
from entmtp.errors import EntMTPError

ENGINE = {"name": "a", "model_name": "m"}


def wait_for(path: Path, count: int) -> list[str]:
    end = time.monotonic() + 1.0
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < end
        time.sleep(0.005)
    return path.read_text().splitlines()


def test_a_line_is_on_disk_within_a_second(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "new" / "folder", "ingress-1")
    assert list(file.path.parent.iterdir()) == []  # no file without a line
    for number in range(3):
        file.write({"status": 200, "user": None, "text": "über\n\ud800"})
        line = json.loads(wait_for(file.path, number + 1)[-1])
        assert line.keys() == {"time", "status", "text"}
        assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 5
        assert line["text"] == "über\n\ud800"
    file.close()


def test_what_a_process_leaves_is_on_disk_when_it_ends(tmp_path: Path) -> None:
    file = LogFile(tmp_path, "ingress-1")
    for number in range(2000):
        file.write({"number": number})
    file.close()
    assert [json.loads(line)["number"] for line in file.path.read_text().splitlines()] == list(range(2000))
    LogFile(tmp_path, "ingress-1").close()
    assert len(file.path.read_text().splitlines()) == 2000  # kept


def test_a_process_keeps_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(log_file, "_FILE_BYTES", 1000)
    monkeypatch.setattr(log_file, "_FILES", 3)
    file = LogFile(tmp_path, "ingress-1")
    for number in range(200):
        file.write({"number": number})
    file.close()
    stored = sorted(tmp_path.iterdir())
    assert len(stored) == 3
    assert all(path.stat().st_size <= 1000 for path in stored)
    assert json.loads(file.path.read_text().splitlines()[-1])["number"] == 199


def grown(folder: Path, monkeypatch: pytest.MonkeyPatch, **most: int) -> set[str]:
    """Names that are left of ten files of 100 bytes when another process begins a file."""
    for name, value in most.items():
        monkeypatch.setattr(log_file, name, value)
    for number in range(10):
        name = f"proxy-host-{number}.jsonl" if number % 2 else f"ingress-{number}.jsonl.1"
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (number, number))
    LogFile(folder, "ingress-new").close()
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("most", [{"_FOLDER_BYTES": 399}, {"_FOLDER_FILES": 3}])
def test_a_folder_keeps_a_bounded_number_of_bytes_and_files(
    most: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("other.jsonl", "proxy-notes.txt"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        os.utime(tmp_path / name, (0, 0))
    newest = {"proxy-host-9.jsonl", "ingress-8.jsonl.1", "proxy-host-7.jsonl"}
    assert grown(tmp_path, monkeypatch, **most) == newest | {"other.jsonl", "proxy-notes.txt"}


def test_a_file_that_is_being_written_is_kept_however_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = LogFile(tmp_path, "ingress-old")
    written.write({"number": 1})
    wait_for(written.path, 1)
    os.utime(written.path, (0, 0))
    assert grown(tmp_path, monkeypatch, _FOLDER_BYTES=0) == {"ingress-old.jsonl"}
    written.write({"number": 2})
    wait_for(written.path, 2)
    written.close()
    LogFile(tmp_path, "ingress-new").close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EntMTPError, match=r"log_folder: .*file.* can't be written"):
        LogFile(tmp_path / "file", "ingress-1")


def test_a_proxy_follows_what_the_ingresses_announce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, two = (ProxySettings(tmp_path / name) for name in ("one", "two"))
    reported: list[ProxySettings | None] = [None, None, one, one, two]
    monkeypatch.setattr(proxy_settings, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(proxy_settings, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(proxy_settings, "read_proxy_settings", lambda: reported.pop(0))
    log = ProxyLog(ProxySettingsReader())
    for number in range(5):
        log.write({"number": number})
    for name, numbers in (("one", [2, 3]), ("two", [4])):
        (path,) = _written(tmp_path / name)
        assert [json.loads(line)["number"] for line in wait_for(path, len(numbers))] == numbers


def test_a_proxy_asks_seldom_where_the_log_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reported = [ProxySettings(tmp_path)]
    monkeypatch.setattr(proxy_settings, "read_proxy_settings", lambda: reported.pop(0))
    log = ProxyLog(ProxySettingsReader())
    for _ in range(3):
        log.write({})
    (path,) = _written(tmp_path)
    assert len(wait_for(path, 3)) == 3


def _written(folder: Path) -> list[Path]:
    end = time.monotonic() + 1.0
    while not (found := list(folder.glob("proxy-*.jsonl"))) and time.monotonic() < end:
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("folder", ["results", "./logs", "~someone/logs"])
def test_a_folder_that_depends_on_the_process_is_refused(folder: str) -> None:
    with pytest.raises(EntMTPError, match="log_folder"):
        AppArgs.parse(engines=[ENGINE], log_folder=folder)


@pytest.mark.parametrize("folder", ["/var/log/entmtp", "~/logs"])
def test_a_folder_is_the_same_for_every_process_of_a_node(folder: str) -> None:
    assert AppArgs.parse(engines=[ENGINE], log_folder=folder).log_folder == Path(folder)
