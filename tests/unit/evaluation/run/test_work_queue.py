"""The scheduling of the fan-out without a cluster: every prompt once, whatever dies, and bounded tries."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.evaluation.results.rows import tables_of
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import FUTILE, TRIES, SetAside, SettledUnit, UnitOutcome, WorkQueue
from entmtp.suites import Prompt
from tests.helpers.synthetic_rows import make_rows


def unit(name: str, prompts: int, first: int = 0) -> Unit:
    made = tuple(Prompt(f"{name}/{index}", "gsm8k", "?", {}) for index in range(prompts))
    return Unit(name, first, "gsm8k", "file", made)


def outcome(task: Unit, failing: frozenset[str] = frozenset(), memory: float = 1.0) -> UnitOutcome:
    """What a worker would return: a request for each prompt."""
    done = [prompt.id for prompt in task.prompts if prompt.id not in failing]
    failures = {prompt.id: "it raised" for prompt in task.prompts if prompt.id in failing}
    measured = {"peak_memory_mib": memory, "histories": {name: [("user", "Hm.")] for name in done}}
    (row,), _ = make_rows(arms=["hydra"], suites=["gsm8k"], prompts=1, repetitions=1, new_tokens=8)
    rows = [replace(row, prompt_id=name) for name in done]
    return UnitOutcome(*tables_of(rows, []), failures, 2.0, measured)


def run_all(
    queue: WorkQueue, raises: frozenset[str] = frozenset(), kills: frozenset[str] = frozenset()
) -> list[SettledUnit]:
    """One worker after another, until all is settled."""
    settled = []
    while (task := queue.next()) is not None:
        dies = any(prompt.id in kills for prompt in task.prompts)
        done = queue.lost(task, "it died") if dies else queue.returned(task, outcome(task, raises))
        settled += [done] if done is not None else []
    assert queue.over
    return settled


def prompts_of(settled: SettledUnit) -> list[str]:
    """The prompts of its rows, sorted."""
    return sorted(settled.requests["prompt_id"].to_pylist())


def test_units_go_out_in_order_and_are_settled_once() -> None:
    units = [unit("a", 2), unit("b", 1), unit("c", 3)]
    settled = run_all(WorkQueue(units))
    assert [each.unit for each in settled] == units
    assert [prompts_of(each) for each in settled] == [["a/0", "a/1"], ["b/0"], ["c/0", "c/1", "c/2"]]
    assert [each.busy_seconds for each in settled] == [2.0] * 3
    assert not any(each.set_aside for each in settled)


def test_a_worker_that_has_a_suite_stays_with_it_as_long_as_there_are_units_of_it() -> None:
    units = [replace(unit(name, 1), suite=name[:1]) for name in ("a1", "b1", "a2", "b2")]
    queue = WorkQueue(units)
    assert [queue.next("b"), queue.next("b"), queue.next("b"), queue.next()] == [
        units[1],
        units[3],
        units[0],
        units[2],
    ]
    assert queue.next("a") is None


def test_a_lost_unit_is_cut_into_prompts_that_keep_their_indices() -> None:
    queue = WorkQueue([unit("a", 3, first=6)])
    whole = queue.next()
    assert whole is not None
    assert queue.lost(whole, "it died") is None
    tasks = [queue.next() for _ in range(3)]
    assert [(task.key, task.first, [prompt.id for prompt in task.prompts]) for task in tasks if task] == [
        ("a", 6 + index, [f"a/{index}"]) for index in range(3)
    ]
    assert queue.next() is None
    ends = [queue.returned(task, outcome(task, memory=n)) for n, task in enumerate(tasks) if task]
    assert ends[:2] == [None, None]
    assert ends[2] is not None
    assert prompts_of(ends[2]) == ["a/0", "a/1", "a/2"]
    assert ends[2].metadata["peak_memory_mib"] == 2
    assert list(ends[2].metadata["histories"]) == ["a/0", "a/1", "a/2"], "of all its parts"


@pytest.mark.parametrize("deadly", [True, False])
def test_a_poisoned_prompt_is_set_aside_and_its_neighbours_are_done(deadly: bool) -> None:
    poison = frozenset({"a/1"})
    settled = run_all(WorkQueue([unit("a", 3), unit("b", 1)]), **{"kills" if deadly else "raises": poison})
    assert {each.unit.key: prompts_of(each) for each in settled} == {"a": ["a/0", "a/2"], "b": ["b/0"]}
    (given_up,) = [prompt for each in settled for prompt in each.set_aside]
    assert given_up == SetAside("gsm8k", "a/1", TRIES, "it died" if deadly else "it raised")


def test_a_prompt_that_fails_less_often_is_done() -> None:
    queue = WorkQueue([unit("a", 1)])
    for _ in range(TRIES - 1):
        task = queue.next()
        assert task is not None
        assert queue.lost(task, "it died") is None
    task = queue.next()
    assert task is not None
    settled = queue.returned(task, outcome(task))
    assert settled is not None
    assert settled.set_aside == []


def test_where_nothing_works_it_stops() -> None:
    units = [unit(str(number), 1) for number in range(3 * FUTILE)]
    everything = frozenset(prompt.id for each in units for prompt in each.prompts)
    with pytest.raises(
        EntMTPError, match=f"the first {FUTILE} prompts all failed {TRIES} times, the last with 'it rais"
    ):
        run_all(WorkQueue(units), raises=everything)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    workers=st.integers(1, 5),
    data=st.data(),
)
def test_every_prompt_is_done_once_whatever_order_workers_answer_or_die_in(
    sizes: list[int], workers: int, data: st.DataObject
) -> None:
    units = [unit(f"u{number}", size) for number, size in enumerate(sizes)]
    prompts = [prompt.id for each in units for prompt in each.prompts]
    poison = frozenset(data.draw(st.sets(st.sampled_from(prompts), max_size=min(FUTILE - 1, len(prompts)))))
    queue = WorkQueue(units)
    deaths = data.draw(st.integers(0, TRIES - 1))  # too few to be taken for poison
    running: list[Unit] = []
    settled: list[SettledUnit] = []
    tasks = 0
    while not queue.over:
        while len(running) < workers and (task := queue.next()) is not None:
            running.append(task)
        task = running.pop(data.draw(st.integers(0, len(running) - 1)))
        tasks += 1
        if deaths and data.draw(st.booleans()):
            deaths -= 1
            done = queue.lost(task, "node gone")
        else:
            done = queue.returned(task, outcome(task, poison))
        settled += [done] if done is not None else []
    assert running == []
    assert Counter(each.unit.key for each in settled) == dict.fromkeys((each.key for each in units), 1)
    rows = Counter(name for each in settled for name in prompts_of(each))
    assert rows == dict.fromkeys(set(prompts) - poison, 1)
    assert {prompt.prompt_id for each in settled for prompt in each.set_aside} == poison
    assert tasks <= len(units) + len(prompts) + TRIES * (len(poison) + TRIES)
