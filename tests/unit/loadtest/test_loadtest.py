"""Load on an endpoint: when requests leave, and what is counted."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest

from entmtp.errors import EntMTPError
from entmtp.loadtest.levels import SWEEP, Level, parse_levels
from entmtp.loadtest.load_plot import draw_load
from entmtp.loadtest.load_summary import Slo, level_table, outcome_table, speedup, summarise_load
from entmtp.loadtest.load_table import comparison_lines
from entmtp.loadtest.traffic import Endpoint, RequestOutcome, Traffic, arrivals
from entmtp.loadtest.turns import alternate_endpoints, sweep, texts_by_request
from tests.helpers.chat_service import Crowd, service


def outcomes_of(
    *prompts: str, users: int | None = 1, rate: float = 0.0, together: int = 1
) -> tuple[list[RequestOutcome], Crowd]:
    async def scene() -> tuple[list[RequestOutcome], Crowd]:
        async with service(together) as (url, crowd):
            traffic = Traffic(Endpoint("e", url, "m"), prompts, 3, 30.0)
            numbers = range(len(prompts))
            if users is not None:
                return await traffic.closed(numbers, users, lambda _: None), crowd
            return await traffic.open(numbers, rate, 0, lambda _: None), crowd

    return asyncio.run(scene())


def test_a_request_is_taken_apart() -> None:
    ((outcome,), _) = outcomes_of("one")
    assert outcome.error is None
    assert outcome.text == "one two three"
    assert (outcome.tokens, outcome.tau, len(outcome.chunks)) == (3, 1.5, 2)
    assert outcome.itl == [outcome.chunks[1] - outcome.chunks[0]]
    assert outcome.tpot == pytest.approx(outcome.itl[0] / 2)
    assert 0 < outcome.ttft < outcome.seconds


def test_errors_have_kinds() -> None:
    outcomes, _ = outcomes_of("full", "fail", "odd", "cut", "good", users=2)
    kinds = ["HTTP 429", "stream: unavailable_error", "stream: error", "stream cut", None]
    assert [one.error for one in outcomes] == kinds


def test_a_service_may_close_a_connection_after_an_answer() -> None:
    outcomes, _ = outcomes_of(*["close"] * 6)
    assert [one.error for one in outcomes] == [None] * 6


def test_nobody_there_is_an_error_too() -> None:
    traffic = Traffic(Endpoint("e", "http://127.0.0.1:9/v1", "m"), ["x"], 3, 10.0)
    (outcome,) = asyncio.run(traffic.closed([0], 1, lambda _: None))
    assert outcome.error == "connection"


def test_a_closed_loop_has_as_many_requests_as_users() -> None:
    outcomes, crowd = outcomes_of(*["meet"] * 6, users=3, together=3)
    assert [one.error for one in outcomes] == [None] * 6
    assert crowd.most == 3


def test_an_open_loop_does_not_wait_for_answers() -> None:
    outcomes, crowd = outcomes_of(*["meet"] * 10, users=None, rate=500.0, together=10)
    assert [one.error for one in outcomes] == [None] * 10
    assert crowd.most == 10


def test_requests_leave_at_random_moments() -> None:
    moments = list(itertools.islice(arrivals(4.0, seed=1), 4000))
    assert moments == list(itertools.islice(arrivals(4.0, seed=1), 4000))
    gaps = np.diff(moments)
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as an exponential distribution's


def outcome(number: int, began: float, *chunks: float, error: str | None = None, text: str = "t") -> RequestOutcome:
    ended = chunks[-1] if chunks else began
    return RequestOutcome(number, began, list(chunks), ended, text, 2 * len(chunks), 2.0, error)


def test_what_users_saw_in_numbers() -> None:
    rounds = [[outcome(0, 0.0, 0.1, 0.4), outcome(1, 0.0, 0.5, 2.0, text="other"), outcome(2, 0.0, error="HTTP 429")]]
    summary = summarise_load("e", rounds, Slo(ttft=0.2, tpot=0.2), {(0, 0): "t", (0, 1): "t"})
    assert summary.requests == 3
    assert summary.errors == {"HTTP 429": 1}
    assert summary.tokens_per_second == pytest.approx(8 / 2.0)
    assert summary.slo_share == pytest.approx(1 / 3)
    assert summary.goodput == pytest.approx(1 / 2.0)
    assert summary.percentiles["ttft"][50] == pytest.approx(0.3)
    assert summary.percentiles["tpot"][50] == pytest.approx((0.1 + 0.5) / 2)
    assert summary.percentiles["e2e"][99] == pytest.approx(np.percentile([0.4, 2.0], 99))
    assert summary.differing == 1
    assert summary.metrics()["errors.HTTP 429"] == 1.0
    level = Level(users=3)
    table = outcome_table({level: {"e": rounds}})
    assert (table.num_rows, table["users"].to_pylist()) == (3, [3, 3, 3])
    (row,) = level_table({level: [summary]}).to_pylist()
    assert (row["endpoint"], row["users"], row["rate"], row["errors"]) == ("e", 3, None, 1)
    assert (row["tokens_per_second"], row["ttft_p50"]) == (summary.tokens_per_second, summary.percentiles["ttft"][50])


def test_two_endpoints_are_compared_on_what_both_answered() -> None:
    fast = [[outcome(at, 0.0, 0.1, 1.0) for at in range(4)]]
    slow = [[outcome(at, 0.0, 0.3, 2.0) for at in range(3)] + [outcome(3, 0.0, error="timeout")]]
    found = speedup(fast, slow, "e2e")
    assert found is not None
    assert found.value == pytest.approx(2.0)
    first = speedup(fast, slow, "ttft")
    assert first is not None
    assert first.value == pytest.approx(3.0)
    assert speedup(fast, [[outcome(0, 0.0, error="x")]], "e2e") is None


@pytest.mark.parametrize("longer_is_first", [True, False])
def test_the_last_tokens_of_a_longer_answer_are_not_counted(longer_is_first: bool) -> None:
    # Six tokens of 0.2 s each after the first at 0.5 s, and two of 0.2 s: the same pace.
    long = [[RequestOutcome(0, 0.0, [0.5, 1.7], 1.8, "", 7)]]
    short = [[RequestOutcome(0, 0.0, [0.5, 0.9], 1.0, "", 3)]]
    found = speedup(long, short, "e2e") if longer_is_first else speedup(short, long, "e2e")
    assert found is not None
    assert found.value == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "a", "=http://x", "a=x", "a=ftp://x"])
def test_an_endpoint_needs_a_name_and_an_address(text: str) -> None:
    with pytest.raises(EntMTPError, match="endpoint"):
        Endpoint.parse(text, "m", "k")


def test_an_endpoint_may_name_a_method() -> None:
    found = Endpoint.parse("a=http://x/v1#hydra", "m", "k")
    assert (found.name, found.url, found.method) == ("a", "http://x/v1", "hydra")


def test_endpoints_take_turns_and_who_is_first_changes() -> None:
    traffic = [Traffic(Endpoint(name, "http://x", "m"), ["p"], 1, 1.0) for name in ("a", "b")]
    order: list[tuple[str, int]] = []

    async def send(one: Traffic, at: int) -> list[RequestOutcome]:
        order.append((one.endpoint.name, at))
        return [RequestOutcome(at, 0.0, text=one.endpoint.name)]

    found = asyncio.run(alternate_endpoints(traffic, 3, send))
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert texts_by_request(found["b"]) == {(at, at): "b" for at in range(3)}


# --- levels ----------------------------------------------------------------------------------------------------------


def test_levels_are_numbers_with_commas_between() -> None:
    assert parse_levels("1, 8,8,64", None) == [Level(users=1), Level(users=8), Level(users=64)]
    assert parse_levels("2", "0.5,3") == [Level(users=2), Level(rate=0.5), Level(rate=3.0)]
    assert parse_levels(None, None) == [Level(users=count) for count in SWEEP] == parse_levels("1,2,4,8,16,32,64", None)
    assert [str(level) for level in parse_levels("1,2", "0.5")] == ["1 user", "2 users", "0.5 requests/s"]


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1,,2", "1.5", "4097", "1 2"])
def test_users_that_there_cannot_be(text: str) -> None:
    with pytest.raises(EntMTPError, match=r"^users: '.*' "):
        parse_levels(text, None)


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "nan", "inf", "1,,2"])
def test_rates_that_there_cannot_be(text: str) -> None:
    with pytest.raises(EntMTPError, match=r"^rate: '.*' "):
        parse_levels(None, text)


def test_a_sweep_has_each_number_of_users_at_once_and_asks_nothing_twice() -> None:
    levels = [Level(users=1), Level(users=3), Level(rate=500.0)]
    heard: list[str] = []
    answered: list[RequestOutcome] = []

    async def scene() -> tuple[dict[Level, dict[str, list[list[RequestOutcome]]]], int]:
        async with service(together=3) as (url, crowd):
            # Warmed up by the last two; at the second level, whose numbers are 4 to 15, three must meet.
            prompts = ["one"] * 4 + ["meet"] * 12 + ["two"] * 6
            traffic = [Traffic(Endpoint("e", url, "m"), prompts, 3, 30.0)]
            return await sweep(traffic, levels, 2, 2, 0, heard.append, answered.append), crowd.most

    found, most = asyncio.run(scene())
    assert {level: [[one.number for one in its] for its in found[level]["e"]] for level in levels} == {
        levels[0]: [[0, 1], [2, 3]],
        levels[1]: [[*range(4, 10)], [*range(10, 16)]],
        levels[2]: [[16, 17], [18, 19]],
    }
    assert most == 3
    assert all(one.error is None for one in answered)
    assert len(answered) == 4 + 12 + 4
    assert heard == [f"e, {level}, round {at} of 2" for level in levels for at in (1, 2)]


def test_throughput_against_latency_is_drawn_and_two_endpoints_are_compared(tmp_path: Path) -> None:
    def rounds_of(pace: float) -> list[list[RequestOutcome]]:
        return [[outcome(at, 0.0, 0.1 * pace, pace) for at in range(4)]]

    levels = [Level(users=1), Level(users=64), Level(rate=2.0)]
    found = {
        level: {"a": rounds_of(at + 1.0), "b": rounds_of(at + 2.0)}
        | ({"b": [[outcome(0, 0.0, error="x")]]} if at else {})
        for at, level in enumerate(levels)
    }
    slo = Slo(1.0, 1.0)
    summaries = {
        level: [summarise_load(name, its, slo, texts_by_request(each["a"])) for name, its in each.items()]
        for level, each in found.items()
    }
    plot = draw_load(tmp_path / "throughput.png", summaries)
    assert plot.path.read_bytes().startswith(b"\x89PNG")
    lines = comparison_lines(levels[0], found[levels[0]], summaries[levels[0]])
    assert [line.partition(":")[0] for line in lines] == [
        "1 user, a over b, whole answers",
        "1 user, a over b, first tokens",
        "1 user, texts that differ",
    ]
    assert comparison_lines(levels[0], {"a": found[levels[0]]["a"]}, summaries[levels[0]][:1]) == []
