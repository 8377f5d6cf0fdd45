"""The table and the bars that compare several servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from benchmarks import endpoints
from benchmarks.endpoints import BAR, COLUMNS, OURS, _bars, _measure, _rows, fresh_prompts, verdict
from entmtp.errors import EntMTPError
from entmtp.intervals import Estimate
from entmtp.loadtest.levels import Level
from entmtp.loadtest.traffic import Endpoint, RequestOutcome, Traffic
from entmtp.loadtest.turns import Rounds
from entmtp.suites import PAPER_SUITES, scored_prompts
from tests.helpers.chat_service import service

LEVEL = Level(users=2)


def outcome(number: int, seconds: float, text: str = "yes", error: str | None = None) -> RequestOutcome:
    return RequestOutcome(number, 0.0, [0.1, seconds], seconds, text, 8, None, error)


def found(ours: list[RequestOutcome], *theirs: list[RequestOutcome]) -> Rounds:
    return {OURS: [ours]} | {f"other {at}": [each] for at, each in enumerate(theirs)}


def all_in(seconds: float) -> list[RequestOutcome]:
    return [outcome(at, seconds) for at in range(4)]


def test_each_other_server_has_our_speed_over_it_in_its_row() -> None:
    rows = _rows(LEVEL, found(all_in(1.0), all_in(2.0), all_in(0.5)))
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert [row[:2] for row in rows] == [[2, OURS], [2, "other 0"], [2, "other 1"]]
    assert [str(row[6])[:5] for row in rows] == ["", "2.00x", "0.50x"]


def test_texts_that_differ_are_counted() -> None:
    ours, theirs = [outcome(0, 1.0), outcome(1, 1.0)], [outcome(0, 1.0), outcome(1, 1.0, "no")]
    assert [row[7] for row in _rows(LEVEL, found(ours, theirs))] == ["", "1/2"]


def test_a_server_that_fails_is_not_compared() -> None:
    with pytest.raises(EntMTPError, match=r"other 0: .*HTTP 429.*2 users"):
        _rows(LEVEL, found([outcome(0, 1.0)], [outcome(0, 1.0, error="HTTP 429")]))


def test_each_other_server_has_a_bar_at_each_load() -> None:
    lines = _bars(LEVEL, found(all_in(1.0), all_in(2.0), all_in(0.5)))
    assert [line.partition(" as fast")[0] for line in lines] == [
        "PASS: 2 users: whole answers 2.00x [2.00, 2.00]",
        "FAIL: 2 users: whole answers 0.50x [0.50, 0.50]",
    ]
    assert lines[1].endswith("as fast as with other 1 (bar: 1.20x).")


def test_the_bar_is_for_the_estimate_and_an_interval_that_holds_it_is_reported() -> None:
    assert verdict(LEVEL, "x", Estimate(BAR, 1.19, 1.3)).startswith("PASS: ")
    assert verdict(LEVEL, "x", Estimate(BAR - 0.01, 1.1, 1.3)).startswith("FAIL: ")
    assert "holds it" in verdict(LEVEL, "x", Estimate(1.3, 1.19, 1.4))
    assert "holds it" not in verdict(LEVEL, "x", Estimate(1.3, 1.21, 1.4))


def test_there_is_no_claim_without_an_interval() -> None:
    assert verdict(LEVEL, "x", Estimate(2.0, None, None)).startswith("no claim: 2 users: x ")


def test_no_prompt_comes_twice_and_suites_take_turns() -> None:
    prompts = fresh_prompts(200)
    assert len(set(prompts)) == len(prompts)
    first = [scored_prompts(name, 12)[0].text for name in PAPER_SUITES]
    assert prompts[: len(first)] == first
    again = prompts.index(f"(2) {first[0]}")
    assert prompts[again : 2 * again] == [f"(2) {text}" for text in prompts[:again]]
    assert prompts[2 * again] == f"(3) {first[0]}"


@pytest.mark.parametrize(
    ("others", "message"),
    [([OURS], "our own name"), (["a", "b", "a"], "two are named 'a'")],
)
def test_servers_have_names_of_their_own(
    others: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing_starts(*_: Any) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(endpoints, "service_address", nothing_starts)
    with pytest.raises(SystemExit):
        endpoints.main([f"{name}=http://127.0.0.1:9/v1" for name in others])
    assert message in capsys.readouterr().err


def test_all_servers_are_warmed_up_by_as_many_users_as_come_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(endpoints, "time", SimpleNamespace(sleep=rests.append))
    levels = [Level(users=1), Level(users=3)]

    async def scene() -> tuple[dict[Level, Rounds], int]:
        async with service(together=3) as (url, crowd):
            # 4 + 12 requests are measured; then come three that must meet, and two more.
            prompts = [*(["one"] * 16), *(["meet"] * 3), *(["two"] * 2)]
            traffic = [Traffic(Endpoint(name, url, "m"), prompts, 3, 30.0) for name in (OURS, "a", "b")]
            return await _measure(traffic, levels, 2, 2, range(16, 19)), crowd.most

    measured, most = asyncio.run(scene())
    assert most == 3
    assert [list(measured[level]) for level in levels] == [[OURS, "a", "b"]] * 2
    assert [[len(round_) for round_ in measured[level]["b"]] for level in levels] == [[2, 2], [6, 6]]
    assert rests == [endpoints._REST_SECONDS] * (2 * 2 * 3)  # before each round of each server


def test_the_service_with_chosen_kernels_is_compared_with_all_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def started(url: str | None, kernels: str) -> Iterator[str]:
        yield f"http://{kernels}"

    async def measured(traffic: list[Traffic], levels: list[Level], *_: Any) -> dict[Level, Rounds]:
        assert traffic[0].endpoint == Endpoint(OURS, "http://fused-int8/v1", "smollm2-135m")
        seconds = {OURS: 1.0, "a": 2.0, "b": 0.5}
        return {level: {one.endpoint.name: [all_in(seconds[one.endpoint.name])] for one in traffic} for level in levels}

    monkeypatch.setattr(endpoints, "service_address", started)
    monkeypatch.setattr(endpoints, "_measure", measured)
    endpoints.main(["a=http://x/v1", "b=http://y/v1"], kernels="fused-int8", users=[4, 1], rounds=1)
    shown = capsys.readouterr().out
    assert "The service next to a, b, with kernels fused-int8" in shown
    lines = [line[2:] for line in shown.splitlines() if line.startswith(("- PASS", "- FAIL"))]
    bars = [line.partition(": whole")[0] for line in lines]
    assert bars == ["PASS: 1 user", "FAIL: 1 user", "PASS: 4 users", "FAIL: 4 users"]


def test_a_server_that_does_not_answer_is_named_before_anything_is_measured() -> None:
    traffic = [Traffic(Endpoint("a", "http://127.0.0.1:9/v1", "m"), ["x"], 3, 10.0)]
    with pytest.raises(EntMTPError, match=r"^a: http://127.0.0.1:9/v1 fails \(connection\); does it run\?"):
        asyncio.run(_measure(traffic, [LEVEL], 1, 1, range(1)))
