"""The plan, and what is done of it: everything around the workers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from entmtp.errors import EntMTPError
from entmtp.evaluation.arms import DEFAULT_ARMS, METHODS
from entmtp.evaluation.benchmark import (
    Plan,
    bank_task,
    describe,
    finish,
    make_plan,
    run_units,
    save_unit,
    validate,
)
from entmtp.evaluation.rows import read_parts
from entmtp.evaluation.summary import LOSSY
from entmtp.evaluation.tracking import check_tracking, default_tracking_uri
from entmtp.evaluation.units import Unit
from entmtp.heads.checkpoint import KINDS
from tests.saved import SUITES, VOCAB, Saved, save_project, save_tiny_model
from tests.tiny import random_heads
from tests.unit.evaluation.synthetic import COST, make_rows

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    project = save_project(tmp_path_factory.mktemp("project"))
    check_tracking(default_tracking_uri(project.folder))
    return project


def plan_of(saved: Saved, results: Path, **changes: Any) -> Plan:
    arguments: dict[str, Any] = {
        "profile": "quick",
        "suites": list(SUITES),
        "arms": [],
        "model": str(saved.model),
        "heads": [f"{kind}={saved.heads(kind)}" for kind in KINDS],
        "banks": saved.banks,
        "data": [f"{suite}={saved.data(suite)}" for suite in SUITES],
        "overrides": {"prompts": 2, "max_new_tokens": None, "repetitions": None},
        "results": results,
        "tracking_uri": default_tracking_uri(saved.folder),
        "device": "cpu",
        "threads": 1,
    }
    return make_plan(**(arguments | changes))


def test_a_plan_says_everything_that_a_worker_needs(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path)
    assert plan.arms == list(DEFAULT_ARMS)
    assert (plan.settings.prompts, plan.settings.repetitions) == (2, 3)
    assert {unit.suite for unit in plan.units} == set(SUITES)
    assert sum(len(unit.prompts) for unit in plan.units) == 4
    assert set(plan.place.banks) == set(SUITES)
    assert all(Path(path).is_file() for banks in plan.place.banks.values() for path in banks.values())
    assert plan.waiting == plan.units


def test_a_suite_named_twice_runs_once(saved: Saved, tmp_path: Path) -> None:
    assert plan_of(saved, tmp_path, suites=["gsm8k", "gsm8k"]).units == plan_of(saved, tmp_path, suites=["gsm8k"]).units


def test_other_heads_make_other_units(saved: Saved, tmp_path: Path) -> None:
    before = {unit.key for unit in plan_of(saved, tmp_path).units}
    backbone = save_tiny_model(tmp_path / "model")
    random_heads("hydra", backbone, vocab_size=VOCAB, draft_vocab_size=64).save_pretrained(tmp_path / "hydra")
    heads = [f"medusa={saved.heads('medusa')}", f"hydra={tmp_path / 'hydra'}"]
    assert not before & {unit.key for unit in plan_of(saved, tmp_path, heads=heads).units}


def fake(units: list[Unit], ran: list[str], until: int | None = None) -> Iterator[tuple[Unit, Any]]:
    """Workers' results without workers; stops as if killed after ``until`` units."""
    for number, unit in enumerate(units):
        if number == until:
            raise KeyboardInterrupt
        ran.append(unit.key)
        requests, steps = make_rows(arms=["hydra"], suites=[unit.suite], prompts=1, repetitions=1, new_tokens=8)
        yield unit, (requests, steps, {"peak_memory_mib": 1.0})


def test_an_interrupted_plan_goes_on_where_it_stopped(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path)
    total = len(plan.units)
    assert total > 2
    ran: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_units(plan, lambda waiting: fake(waiting, ran, until=2), QUIET)
    assert len(plan.waiting) == total - 2
    written = {path: path.stat().st_mtime_ns for path in plan.parts.iterdir()}

    run_units(plan_of(saved, tmp_path), lambda waiting: fake(waiting, ran), QUIET)
    assert ran == [unit.key for unit in plan.units]
    assert plan.waiting == []
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list(plan.parts.iterdir())) == 2 * total
    requests, _ = read_parts(plan.parts, [unit.key for unit in plan.units])
    assert requests.num_rows == total

    run_units(plan, lambda waiting: fake(waiting, ran), QUIET)
    assert len(ran) == total


@pytest.mark.parametrize("costs", [{}, {"costs": {"hydra": COST.model_dump()}}], ids=["older parts", "costs"])
def test_a_finished_plan_shows_what_static_trees_could_do(saved: Saved, tmp_path: Path, costs: dict[str, Any]) -> None:
    plan = plan_of(saved, tmp_path)
    for unit in plan.units:
        requests, steps = make_rows(arms=["hydra"], suites=[unit.suite], prompts=1, repetitions=1, new_tokens=8)
        save_unit(plan, unit, requests, steps, {"peak_memory_mib": 1.0, **costs})
    finish(plan, "test", QUIET)
    table = plan.results / "report" / "tables" / "pareto.parquet"
    assert table.exists() == bool(costs)
    if costs:
        rows = pq.read_table(table).to_pylist()
        assert {(row["suite"], row["heads"]) for row in rows} == {(suite, "hydra") for suite in SUITES}
        assert {row["ms"] for row in rows if row["nodes"] == 0} == {30.0}


@pytest.fixture
def banks(saved: Saved, tmp_path: Path) -> Path:
    """The project's banks, and one for all."""
    folder = tmp_path / "banks"
    folder.mkdir()
    for kind in KINDS:
        for suite in SUITES:
            shutil.copy(saved.banks / f"{suite}-{kind}.json", folder)
        shutil.copy(saved.banks / f"gsm8k-{kind}.json", folder / f"mixed-{kind}.json")
    return folder


def custom_plan(saved: Saved, results: Path, banks: Path, **changes: Any) -> Plan:
    file = results / "own.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Tell me more about {n}."}) + "\n" for n in range(9)))
    data = [f"custom={file}", f"gsm8k={saved.data('gsm8k')}"]
    arguments = {"suites": ["custom", "gsm8k-2-shot"], "banks": banks, "data": data}
    return plan_of(saved, results, **(arguments | changes))


def test_a_suite_uses_the_mixed_bank_unless_there_is_one_of_its_name(saved: Saved, tmp_path: Path, banks: Path) -> None:
    many = {"prompts": 99, "max_new_tokens": None, "repetitions": None}
    plan = custom_plan(saved, tmp_path, banks, overrides=many)
    assert {suite: bank_task(plan.place, suite) for suite in plan.place.banks} == {
        "custom": "mixed",
        "gsm8k-2-shot": "gsm8k",
    }
    told = list(describe(plan))
    assert told[0] == "custom: 9 prompts (file), up to 24 new tokens, tree banks of 'mixed'"
    assert told[1].endswith("tree banks of 'gsm8k'")

    for kind in KINDS:
        shutil.copy(banks / f"mixed-{kind}.json", banks / f"custom-{kind}.json")
    own = custom_plan(saved, tmp_path, banks, overrides=many)
    assert bank_task(own.place, "custom") == "custom"
    assert 0 < sum(len(unit.prompts) for unit in own.units if unit.suite == "custom") < 9, "half may have calibrated it"


def test_answers_are_written_for_judges(saved: Saved, tmp_path: Path, banks: Path) -> None:
    plan = custom_plan(saved, tmp_path, banks, suites=["gsm8k-2-shot"])
    for unit in plan.units:
        requests, steps = make_rows(arms=["hydra"], suites=["gsm8k"], prompts=1, repetitions=2, new_tokens=8)
        (prompt,) = unit.prompts
        rows = [replace(row, suite=unit.suite, prompt_id=prompt.id, text="Four.") for row in requests]
        its_steps = [replace(step, suite=unit.suite, prompt_id=prompt.id) for step in steps]
        histories = {prompt.id: [("user", "Hm."), ("assistant", "Yes?")]}
        save_unit(plan, unit, rows, its_steps, {"peak_memory_mib": 1.0, "histories": histories})
    finish(plan, "test", QUIET)
    lines = (plan.results / "report" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {line["prompt_id"]: line for line in map(json.loads, lines)}
    assert len(lines) == len(answers) == len(plan.units)
    for unit in plan.units:
        line = answers[unit.prompts[0].id]
        assert [message["content"] for message in line["messages"]] == ["Hm.", "Yes?", unit.prompts[0].text]
        assert (line["arm"], line["answer"]) == ("hydra", "Four.")
        assert line["reference"] == dict(unit.prompts[0].reference)


def test_profiles_that_draw_have_arms_that_can(saved: Saved, tmp_path: Path) -> None:
    paper = plan_of(saved, tmp_path, profile="paper")
    assert (paper.arms, paper.settings.acceptance, paper.settings.temperature) == (list(METHODS), "typical", 0.7)
    assert plan_of(saved, tmp_path, profile="paper-lossless").arms == [*DEFAULT_ARMS, *LOSSY]
    with pytest.raises(EntMTPError, match="arm: 'random' follows the model's own text"):
        validate(profile="paper", suites=[], arms=["random"], overrides={})


def test_what_is_wrong_is_told_before_anything_runs(saved: Saved, tmp_path: Path) -> None:
    validate(profile="full", suites=["gsm8k"], arms=["entmtp"], overrides={"prompts": None})
    with pytest.raises(EntMTPError, match="repetitions: 0 is not accepted"):
        validate(profile="full", suites=[], arms=[], overrides={"repetitions": 0})
    with pytest.raises(EntMTPError, match=r"no such folder|not found"):
        plan_of(saved, tmp_path, model=str(tmp_path / "nowhere"))
    with pytest.raises(EntMTPError, match="does not exist; make one with 'entmtp calibrate'"):
        plan_of(saved, tmp_path, banks=tmp_path)
    assert not (tmp_path / "parts").exists()
