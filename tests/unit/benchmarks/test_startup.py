import subprocess
from typing import Any

import pytest

from benchmarks import startup
from entmtp.errors import EntMTPError


def test_the_verdict_follows_the_median() -> None:
    assert startup.verdict("hydra", 3.49).startswith("PASS: hydra takes 3.49 s")
    assert startup.verdict("hydra", 3.51).startswith("FAIL: hydra takes 3.51 s")


def test_the_first_process_of_each_method_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {method: iter([100.0, 1.0, 2.0, 4.0]) for method in startup.METHODS}
    monkeypatch.setattr(startup, "seconds_of", lambda method: next(taken[method]))
    monkeypatch.setattr(startup, "first_service", lambda: (40.0, 131.0, 1))
    startup.main(repetitions=3, record=None)
    said = capsys.readouterr().out
    assert "FAIL: the cache folder takes 131 MB (bar: 130)" in said
    assert "2.00 s" in said
    assert "100" not in said


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "generate: no such model\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(EntMTPError, match=r"^method: 'medusa' .* 1: generate: no such model"):
        startup.seconds_of("medusa")


def test_a_service_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_COMMAND", ["false"])
    with pytest.raises(EntMTPError, match=r"^serve: it was not ready after \d+ s"):
        startup.first_service()
