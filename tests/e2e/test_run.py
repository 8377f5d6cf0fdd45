"""The run of a plan: everything around the workers, from the waiting units to the report."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from rich.console import Console

from entmtp.errors import EntMTPError
from entmtp.evaluation.report.load_run import open_run
from entmtp.evaluation.results.rows import finished_keys, read_metadata, read_parts, tables_of
from entmtp.evaluation.results.storage import Store
from entmtp.evaluation.run.dry_run import estimate_duration, show_plan, tokens_of
from entmtp.evaluation.run.finish import finish
from entmtp.evaluation.run.local_executor import LocalExecutor
from entmtp.evaluation.run.placement import ResourceRequest
from entmtp.evaluation.run.plan import Plan, bank_task
from entmtp.evaluation.run.run import describe, run_units, save_unit
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SetAside, SettledUnit
from entmtp.heads.training_prompts import write_training_prompt_hashes
from entmtp.intervals import FEWEST_PROMPTS
from entmtp.prompt_hash import prompt_hash
from tests.helpers.benchmark_plans import plan_of
from tests.helpers.saved_project import SUITES, Saved, save_project
from tests.helpers.synthetic_rows import COST, make_rows
from tests.helpers.tiny_models import STATELESS_KINDS

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("project"))


def settled(unit: Unit, hardware: str = "test", **measured: Any) -> SettledUnit:
    """What a worker might have made of a unit."""
    requests, steps = make_rows(arms=["hydra"], suites=[unit.suite], prompts=1, repetitions=1, new_tokens=8)
    return SettledUnit(
        unit, *tables_of(requests, steps), [], 6.0, {"peak_memory_mib": 1.0, "hardware": hardware, **measured}
    )


def fake(units: list[Unit], ran: list[str], until: int | None = None) -> Iterator[SettledUnit]:
    """Workers' results without workers; stops as if killed after ``until`` units."""
    for number, unit in enumerate(units):
        if number == until:
            raise KeyboardInterrupt
        ran.append(unit.key)
        yield settled(unit)


def test_an_interrupted_plan_goes_on_where_it_stopped(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path)
    total = len(plan.units)
    assert total > 2
    ran: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_units(plan, lambda waiting: fake(waiting, ran, until=2), QUIET)
    assert len(plan.waiting) == total - 2
    folder = tmp_path / "parts"
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    run_units(plan_of(saved, tmp_path), lambda waiting: fake(waiting, ran), QUIET)
    assert ran == [unit.key for unit in plan.units]
    assert plan.waiting == []
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list(folder.iterdir())) == 2 * total
    requests, _ = read_parts(plan.parts, [unit.key for unit in plan.units])
    assert requests.num_rows == total

    run_units(plan, lambda waiting: fake(waiting, ran), QUIET)
    assert len(ran) == total


@pytest.mark.parametrize("costs", [{}, {"costs": {"hydra": COST.model_dump()}}], ids=["older parts", "costs"])
def test_a_finished_plan_shows_what_static_trees_could_do(saved: Saved, tmp_path: Path, costs: dict[str, Any]) -> None:
    plan = plan_of(saved, tmp_path)
    for unit in plan.units:
        save_unit(plan, settled(unit, **costs))
    assert finish(plan, QUIET) == 0
    table = tmp_path / "report" / "tables" / "pareto.parquet"
    assert table.exists() == bool(costs)
    if costs:
        rows = pq.read_table(table).to_pylist()
        assert {(row["suite"], row["heads"]) for row in rows} == {(suite, "hydra") for suite in SUITES}
        assert {row["ms"] for row in rows if row["nodes"] == 0} == {30.0}


def test_parts_of_other_commits_are_named(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("run", "finish"):
        monkeypatch.setattr(f"entmtp.evaluation.run.{module}.git_commit", lambda: "4567def")
    plan = plan_of(saved, tmp_path)
    for number, unit in enumerate(plan.units):
        save_unit(plan, settled(unit, **({"git_commit": "0123abc"} if number else {})))
    assert finish(plan, QUIET) == 0
    content = json.loads((tmp_path / "report" / "summary.json").read_text(encoding="utf-8"))
    assert content["facts"]["git_commit"] == "4567def"
    assert content["facts"]["measured_commits"] == ["0123abc", "4567def"]
    assert any(
        line.startswith("Not all of it was measured by the code of commit 4567def") for line in content["caveats"]
    )


def test_a_finished_plan_can_be_compared(saved: Saved, tmp_path: Path) -> None:
    for folder, prompts in (("one", 2), ("same", 2), ("other", 1)):
        overrides = {"prompts": prompts, "max_new_tokens": None, "repetitions": None}
        plan = plan_of(saved, tmp_path / folder, overrides=overrides)
        for unit in plan.units:
            save_unit(plan, settled(unit))
        finish(plan, QUIET)
    one, same, other = (open_run(str(tmp_path / folder), None) for folder in ("one", "same", "other"))
    assert one.requests.num_rows == 4
    names = [f"prompts.{suite}" for suite in SUITES]
    assert [one.provenance[name] for name in names] == [same.provenance[name] for name in names]
    assert all(one.provenance[name] != other.provenance[name] for name in names)


def poisoned(unit: Unit) -> SettledUnit:
    """A unit of which no prompt was done."""
    lost = [SetAside(unit.suite, prompt.id, 3, "its worker ended") for prompt in unit.prompts]
    return SettledUnit(unit, set_aside=lost)


def recording_console() -> Console:
    """A console that keeps what it prints."""
    return Console(file=StringIO(), width=200)


def text_of(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_prompts_that_were_set_aside_are_listed_and_tried_again_on_request(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path)
    bad, *good = plan.units
    save_unit(plan, poisoned(bad))
    with pytest.raises(EntMTPError, match=r"lacks requests-.*; run the benchmark again to finish it"):
        finish(plan, QUIET)
    for unit in good:
        save_unit(plan, settled(unit))
    console = recording_console()
    assert finish(plan, console) == 1
    line = f"{bad.suite} prompt {bad.prompts[0].id}, 3 tries: its worker ended"
    assert f"1 prompts failed in every try and are in no number: {line}." in text_of(console)
    assert line in (tmp_path / "report" / "index.html").read_text()
    assert plan.waiting == []
    assert plan_of(saved, tmp_path, retry=True).waiting == [bad]


def test_where_no_prompt_was_done_there_is_no_report(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path)
    for unit in plan.units:
        save_unit(plan, poisoned(unit))
    with pytest.raises(EntMTPError, match=r"results: no prompt was done; gsm8k prompt .* with --retry"):
        finish(plan, QUIET)


def test_parts_of_other_settings_are_reported_and_not_mixed(saved: Saved, tmp_path: Path) -> None:
    before = plan_of(saved, tmp_path)
    save_unit(before, settled(before.units[0]))
    assert before.foreign_parts_note() == ""
    now = plan_of(saved, tmp_path, overrides={"prompts": 2, "max_new_tokens": 9, "repetitions": None})
    assert now.waiting == now.units
    assert "1 parts in" in now.foreign_parts_note()
    assert "max_new_tokens is 24 there and 9 here" in now.foreign_parts_note()


def test_times_of_other_hardware_are_refused(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path)
    assert plan.hardware() is None
    plan.check_hardware("anything")
    save_unit(plan, settled(plan.units[0], hardware="A100"))
    plan.check_hardware("A100")
    with pytest.raises(EntMTPError, match="were measured on 'A100' and here is 'H100'; times of both are never mixed"):
        plan.check_hardware("H100")
    for unit in plan.units[1:]:
        save_unit(plan, settled(unit, hardware="H100"))
    with pytest.raises(EntMTPError, match=r"come from different hardware \(A100; H100\)"):
        finish(plan, QUIET)


def test_results_elsewhere_get_parts_and_report(saved: Saved, tmp_path: Path) -> None:
    store = Store(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/run", "tree://bucket/run")
    plan = plan_of(saved, tmp_path, results=store)
    for unit in plan.units:
        save_unit(plan, settled(unit))
    assert finished_keys(plan.parts) == {unit.key for unit in plan.units}
    assert read_metadata(plan.parts, [plan.units[0].key])[0]["depends_on"] == plan.depends_on
    finish(plan, QUIET)
    assert (tmp_path / "bucket" / "run" / "report" / "index.html").is_file()
    with pytest.raises(EntMTPError, match="tracking_uri: MLflow's database can't lie in 'tree://bucket/run'"):
        plan_of(saved, tmp_path, results=store, tracking_uri=None)


def test_the_end_says_what_was_captured_while_timed_and_what_heads_were_trained_on(
    saved: Saved, tmp_path: Path
) -> None:
    heads = {kind: tmp_path / kind for kind in STATELESS_KINDS}
    for kind, folder in heads.items():
        shutil.copytree(saved.heads(kind), folder)
    first = plan_of(saved, tmp_path).units[0]
    write_training_prompt_hashes(heads["hydra"], [prompt_hash(first.prompts[0].text)])
    plan = plan_of(saved, tmp_path, heads=[f"{kind}={folder}" for kind, folder in heads.items()])
    for number, unit in enumerate(plan.units):
        requests, steps = make_rows(arms=["hydra"], suites=[unit.suite], prompts=1, repetitions=1, new_tokens=8)
        rows = [replace(row, captures=2 * number, unsettled_steps=3 * number) for row in requests]
        measured = {"peak_memory_mib": 1.0, "peak_device_memory_mib": 8.0 + number, "warm_up_seconds": 2.0}
        save_unit(plan, SettledUnit(unit, *tables_of(rows, steps), metadata=measured))
    console = recording_console()
    for line in describe(plan):
        console.print(line)
    finish(plan, console)
    for said in (
        f"hydra heads were trained on: {first.suite} 1 of 2",
        "medusa heads were trained on: not known for these heads",
        f"trained on some of the scored prompts (1 of 2 of {first.suite})",
        "captures in measured steps: 12",
        "18 timed steps ran a part for the first time or captured it as a CUDA graph (12)",
        "peak memory of its GPU: 11 MiB",
    ):
        assert said in text_of(console)
    provenance = json.loads((tmp_path / "report" / "summary.json").read_text(encoding="utf-8"))["facts"]
    assert (provenance["captures_in_measured_steps"], provenance["warm_up_seconds"]) == (12, 8)
    assert provenance["training_overlap"]["hydra"][first.suite] == {"seen": 1, "scored": 2}


def test_the_dry_run_counts_tokens_and_names_the_basis_of_its_estimate(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path, arms=["autoregressive", "bank-oracle"])
    # Two prompts of each suite; three repetitions of two arms, the reference, and the look ahead of the bank oracle.
    assert tokens_of(plan, plan.units) == 4 * (3 * 2 + 1 + 1) * 24
    assert estimate_duration(plan, plan.units, 8.0).seconds == pytest.approx(tokens_of(plan, plan.units) / 8)
    assert "8 tokens/s of a worker, as stated" in estimate_duration(plan, plan.units, 8.0).basis
    assert "assumed; state yours" in estimate_duration(plan, plan.units, None).basis
    gpu = replace(plan, config=replace(plan.config, device="cuda"))
    assert tokens_of(gpu, plan.units) == 4 * (4 * 2 + 1 + 1) * 24
    save_unit(plan, settled(plan.units[0]))
    measured = estimate_duration(plan, plan.waiting, None)
    assert (measured.seconds, measured.basis) == (3 * 6.0, "the units that are done")
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(EntMTPError, match=r"tokens_per_second: .* is not accepted"):
            estimate_duration(plan, plan.units, speed)


def test_a_plan_can_be_shown_without_running_anything(saved: Saved, tmp_path: Path) -> None:
    console = recording_console()
    plan = plan_of(saved, tmp_path / "run")
    show_plan(plan, LocalExecutor(ResourceRequest(device="cpu")), 1, 10.0, console)
    for said in ("gsm8k", "sharegpt", f"{len(plan.arms)} arms: ", "3 repetitions", "worker-hours", "rests on"):
        assert said in text_of(console)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("requested", "said"),
    [
        (ResourceRequest(gpus_per_worker=0.5), "gpus_per_worker: 0.5 is for the workers of a cluster"),
        (ResourceRequest(accelerator="H100"), "accelerator: H100 is for the workers of a cluster"),
    ],
)
def test_one_process_has_no_workers(requested: ResourceRequest, said: str) -> None:
    with pytest.raises(EntMTPError, match=said):
        LocalExecutor(requested)


@pytest.fixture
def banks(saved: Saved, tmp_path: Path) -> Path:
    """The project's banks, and one for all."""
    folder = tmp_path / "banks"
    folder.mkdir()
    for kind in STATELESS_KINDS:
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
    assert {suite: bank_task(plan.config, suite) for suite in plan.config.banks} == {
        "custom": "mixed",
        "gsm8k-2-shot": "gsm8k",
    }
    lines = list(describe(plan))
    assert lines[0] == "custom: 9 prompts (file), up to 24 new tokens, tree banks of 'mixed'"
    assert lines[1].endswith("tree banks of 'gsm8k'")

    for kind in STATELESS_KINDS:
        shutil.copy(banks / f"mixed-{kind}.json", banks / f"custom-{kind}.json")
    own = custom_plan(saved, tmp_path, banks, overrides=many)
    assert bank_task(own.config, "custom") == "custom"
    assert 0 < sum(len(unit.prompts) for unit in own.units if unit.suite == "custom") < 9, "half may have calibrated it"


def test_answers_are_written_for_judges(saved: Saved, tmp_path: Path, banks: Path) -> None:
    plan = custom_plan(saved, tmp_path, banks, suites=["gsm8k-2-shot"])
    for unit in plan.units:
        requests, steps = make_rows(arms=["hydra"], suites=["gsm8k"], prompts=1, repetitions=2, new_tokens=8)
        (prompt,) = unit.prompts
        rows = [replace(row, suite=unit.suite, prompt_id=prompt.id, text="Four.") for row in requests]
        its_steps = [replace(step, suite=unit.suite, prompt_id=prompt.id) for step in steps]
        histories = {prompt.id: [("user", "Hm."), ("assistant", "Yes?")]}
        measured = {"peak_memory_mib": 1.0, "histories": histories}
        save_unit(plan, SettledUnit(unit, *tables_of(rows, its_steps), metadata=measured))
    finish(plan, QUIET)
    lines = (tmp_path / "report" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {line["prompt_id"]: line for line in map(json.loads, lines)}
    assert len(lines) == len(answers) == len(plan.units)
    for unit in plan.units:
        line = answers[unit.prompts[0].id]
        assert [message["content"] for message in line["messages"]] == ["Hm.", "Yes?", unit.prompts[0].text]
        assert (line["arm"], line["answer"]) == ("hydra", "Four.")
        assert line["reference"] == dict(unit.prompts[0].reference)


def test_a_quick_run_has_prompts_enough_and_tells_its_first_result_after_one(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path, overrides={"prompts": None, "max_new_tokens": None, "repetitions": None})
    assert plan.settings.prompts >= 2 * FEWEST_PROMPTS
    assert {len(unit.prompts) for unit in plan.units} == {1}
    console = recording_console()
    ran: list[str] = []
    run_units(plan, lambda waiting: fake(waiting, ran), console)
    suite = plan.units[0].suite
    first = f"{suite}, 1 of {sum(unit.suite == suite for unit in plan.units)} prompts, tokens/s: hydra "
    assert first in text_of(console)
