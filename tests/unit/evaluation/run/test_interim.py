import re
from collections.abc import Sequence

import pytest

from entmtp.evaluation.results.rows import tables_of
from entmtp.evaluation.run.interim import InterimResults
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SettledUnit
from entmtp.suites import Prompt
from tests.helpers.synthetic_rows import make_rows

ARMS = ("autoregressive", "medusa", "entmtp", "entmtp-dynamic")


def settled(suite: str, prompts: int, size: int = 1, arms: Sequence[str] = ARMS) -> list[SettledUnit]:
    """All units of a suite, of ``size`` prompts each, as workers finish them."""
    requests, steps = make_rows(arms=arms, suites=[suite], prompts=prompts, repetitions=2)
    units = []
    for first in range(0, prompts, size):
        names = [f"{suite}-{number}" for number in range(first, min(first + size, prompts))]
        unit = Unit(f"{suite}/{first}", first, suite, "file", tuple(Prompt(name, suite, "?", {}) for name in names))
        of_unit = [row for row in requests if row.prompt_id in names]
        units.append(SettledUnit(unit, *tables_of(of_unit, [step for step in steps if step.prompt_id in names])))
    return units


def lines(units: Sequence[SettledUnit]) -> list[str | None]:
    interim = InterimResults([each.unit for each in units])
    return [interim.add(each) for each in units]


def test_the_first_prompt_gives_a_line_of_speeds_without_a_speedup() -> None:
    line = lines(settled("gsm8k", 6))[0]
    assert line is not None
    assert line.startswith("gsm8k, 1 of 6 prompts, tokens/s: autoregressive ")
    assert all(f"{arm} " in line for arm in ARMS)
    assert line.endswith("; no speedups before 3 prompts")


def test_speedups_come_with_their_intervals_from_three_prompts_on() -> None:
    *_, last = lines(settled("gsm8k", 3))
    assert last is not None
    for speedup, arm in zip(last.split("; ")[1:], ("entmtp", "entmtp-dynamic"), strict=True):
        assert re.fullmatch(rf"{arm} against autoregressive \d\.\d\dx \[\d\.\d\d, \d\.\d\d\]", speedup)


@pytest.mark.parametrize(
    ("prompts", "size", "due"),
    [
        (6, 1, [1, 3, 6]),
        (14, 1, [1, 3, 6, 12, 14]),
        (1, 1, [1]),
        (20, 4, [4, 8, 12, 20]),
        (80, 4, [4, 8, 12, 24, 48, 80]),
    ],
)
def test_lines_are_few_and_the_last_prompt_has_one(prompts: int, size: int, due: list[int]) -> None:
    shown = [line.split(" of ")[0] for line in lines(settled("gsm8k", prompts, size)) if line is not None]
    assert shown == [f"gsm8k, {count}" for count in due]


def test_suites_are_counted_apart() -> None:
    a, b = settled("gsm8k", 2), settled("litbench", 2)
    shown = lines([a[0], b[0], b[1], a[1]])
    assert [(line or "").partition(" prompts")[0] for line in shown] == [
        "gsm8k, 1 of 2",
        "litbench, 1 of 2",
        "litbench, 2 of 2",
        "gsm8k, 2 of 2",
    ]


def test_a_suite_whose_prompts_all_failed_says_nothing() -> None:
    unit = settled("gsm8k", 1)[0].unit
    assert InterimResults([unit]).add(SettledUnit(unit)) is None


def test_prompts_that_failed_are_no_pairs() -> None:
    units = settled("gsm8k", 3)
    units[1] = SettledUnit(units[1].unit)
    last = lines(units)[-1]
    assert last is not None
    assert last.startswith("gsm8k, 3 of 3 prompts, tokens/s: autoregressive ")
    assert "against" not in last


def test_arms_without_plain_decoding_have_speeds_only() -> None:
    (*_, last) = lines(settled("gsm8k", 3, arms=["hydra", "entmtp"]))
    assert last is not None
    assert ";" not in last
