import subprocess
from typing import Any

import pytest

from benchmarks import startup
from entmtp.errors import EntMTPError


def test_the_verdict_follows_the_median() -> None:
    assert startup.verdict("hydra", 5.99).startswith("PASS: hydra takes 5.99 s")
    assert startup.verdict("hydra", 6.01).startswith("FAIL: hydra takes 6.01 s")


def test_the_first_process_of_each_method_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {method: iter([100.0, 1.0, 2.0, 4.0]) for method in startup.METHODS}
    monkeypatch.setattr(startup, "seconds_of", lambda method: next(taken[method]))
    startup.main(repetitions=3, record=None)
    said = capsys.readouterr().out
    assert "2.00 s" in said
    assert "100" not in said


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "generate: no such model\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(EntMTPError, match=r"^method: 'medusa' .* 1: generate: no such model"):
        startup.seconds_of("medusa")
