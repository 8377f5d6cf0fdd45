"""The table that compares two servers."""

from __future__ import annotations

import pytest

from benchmarks.endpoints import COLUMNS, OURS, _rows
from entmtp.errors import EntMTPError
from entmtp.loadtest.traffic import RequestOutcome
from entmtp.loadtest.turns import Rounds


def outcome(number: int, seconds: float, text: str = "yes", error: str | None = None) -> RequestOutcome:
    return RequestOutcome(number, 0.0, [0.1, seconds], seconds, text, 8, None, error)


def found(ours: list[RequestOutcome], theirs: list[RequestOutcome]) -> Rounds:
    return {OURS: [ours], "other": [theirs]}


def test_a_server_that_takes_twice_as_long_is_half_as_fast() -> None:
    rows = _rows(2, found([outcome(at, 1.0) for at in range(4)], [outcome(at, 2.0) for at in range(4)]), "other")
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert [row[1] for row in rows] == [OURS, "other"]
    assert str(rows[0][6]).startswith("2.00x")
    assert rows[1][6] == ""


def test_texts_that_differ_are_counted() -> None:
    rows = _rows(1, found([outcome(0, 1.0), outcome(1, 1.0)], [outcome(0, 1.0), outcome(1, 1.0, "no")]), "other")
    assert [row[7] for row in rows] == ["0/2", "1/2"]


def test_a_server_that_fails_is_not_compared() -> None:
    with pytest.raises(EntMTPError, match=r"other: .*HTTP 429.*4 users"):
        _rows(4, found([outcome(0, 1.0)], [outcome(0, 1.0, error="HTTP 429")]), "other")
