"""The end of a benchmark: tables, figures, the HTML report and MLflow, all from its parts."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.pareto import ParetoPoint, pareto
from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.report.answers import write_answers
from entmtp.evaluation.report.mlflow import BENCHMARK_EXPERIMENT, log_benchmark
from entmtp.evaluation.report.report import print_table, write_report
from entmtp.evaluation.results.rows import read_metadata, read_parts
from entmtp.evaluation.run.plan import Plan, bank_task, dependency_hashes
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import PEAKS
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads
from entmtp.policies.step_cost import StepCost
from entmtp.provenance import git_commit
from entmtp.suites.base import Message, Prompt, fingerprint
from entmtp.tracking.client import TrackedModel
from entmtp.trees.bank import load_bank

_VERSIONED = ("entmtp", "torch", "transformers", "ray", "mlflow", "datasets", "numpy")
REPORT = "report"


def finish(plan: Plan, console: Console) -> int:
    """Print, write and track the results of the plan's parts; return the number of prompts that were set aside.

    Raises:
        EntMTPError: a part is missing, no prompt was done, or the parts come from different hardware.
    """
    keys = [unit.key for unit in plan.units]
    requests, steps = read_parts(plan.parts, keys)
    metadata = read_metadata(plan.parts, keys)
    set_aside = [_describe(prompt) for part in metadata for prompt in part.get("set_aside", [])]
    if not requests.num_rows:
        raise EntMTPError(f"results: no prompt was done; {set_aside[0]}; mend that and run again with --retry")
    provenance = _provenance(plan, requests, metadata, set_aside)
    print_table(console, summarise(requests, steps), provenance)
    with plan.results.folder(REPORT) as folder:
        write_report(folder, requests, steps, provenance, _pareto(plan, metadata))
        prompts = [prompt for unit in plan.units for prompt in unit.prompts]
        write_answers(folder / "answers.jsonl", prompts, _histories(metadata), requests)
        run = log_benchmark(
            plan.tracking_uri, BENCHMARK_EXPERIMENT, provenance, requests, steps, folder, _tracked(plan)
        )
    console.print(f"\npeak memory of one worker: {provenance['peak_memory_mib']} MiB")
    if provenance["peak_device_memory_mib"]:
        console.print(f"peak memory of its GPU: {provenance['peak_device_memory_mib']} MiB")
    console.print(f"captures in measured steps: {provenance['captures_in_measured_steps']}")
    report = f"{plan.results}/{REPORT}/index.html"
    console.print(f"\nreport   {report}\nparts    {plan.parts}\nMLflow   {run.tracking_uri}", soft_wrap=True)
    console.print(f"open it  {run.open_command}", soft_wrap=True)
    return len(set_aside)


def _provenance(
    plan: Plan, requests: pa.Table, metadata: Sequence[Mapping[str, Any]], set_aside: Sequence[str]
) -> dict[str, Any]:
    """Provenance of the report's numbers: the ``facts`` of ``summary.json``."""
    return {
        "profile": plan.profile,
        "settings": plan.settings.model_dump(),
        "command": plan.command,
        "model": plan.config.model,
        "dtype": plan.config.dtype,
        "heads": {kind: _shown(source) for kind, source in plan.config.heads.items()},
        "hashes": dependency_hashes(plan.config),
        "prompts": _prompts(plan.units),
        "training_overlap": plan.overlap,
        "banks": {suite: bank_task(plan.config, suite) for suite in dict.fromkeys(unit.suite for unit in plan.units)},
        "hardware": _hardware(plan, metadata),
        "captures_in_measured_steps": pc.sum(requests["captures"]).as_py(),
        "warm_up_seconds": round(sum(part.get("warm_up_seconds", 0.0) for part in metadata)),
        **{name: round(max(part.get(name, 0.0) for part in metadata)) for name in PEAKS},
        "set_aside": set_aside or None,
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _VERSIONED} | {"python": platform.python_version()},
        "git_commit": git_commit(),
        "measured_commits": _commits(metadata),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _prompts(units: Sequence[Unit]) -> dict[str, str]:
    """SHA-256 of each suite's prompts: runs with the same hash had the same prompts."""
    by_suite: dict[str, list[Prompt]] = {}
    for unit in units:
        by_suite.setdefault(unit.suite, []).extend(unit.prompts)
    return {suite: fingerprint(prompts) for suite, prompts in by_suite.items()}


def _describe(prompt: Mapping[str, Any]) -> str:
    """Description of a prompt that was set aside."""
    return f"{prompt['suite']} prompt {prompt['prompt_id']}, {prompt['tries']} tries: {prompt['reason']}"


def _hardware(plan: Plan, metadata: Sequence[Mapping[str, Any]]) -> str:
    """Name of the hardware that all parts were measured on."""
    kinds = sorted({part["hardware"] for part in metadata if part.get("hardware")})
    if len(kinds) > 1:
        raise EntMTPError(
            f"results: parts in '{plan.parts}' come from different hardware ({'; '.join(kinds)}), as if two benchmarks"
            " had run into one folder; run into another --results"
        )
    return kinds[0] if kinds else "not reported by the parts"


def _commits(metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    """Commits that the parts were measured at: several where a run went on with later code, 'unknown' without git."""
    return sorted({part.get("git_commit") or "unknown" for part in metadata})


def _tracked(plan: Plan) -> list[TrackedModel]:
    """Heads and banks to log with the run."""
    heads = [
        TrackedModel(f"{kind}-heads", Path(source), "draft-heads")
        for kind, source in plan.config.heads.items()
        if Path(source).is_dir()
    ]
    banks = [
        TrackedModel(f"{suite}-{kind}-bank", Path(path), "tree-bank")
        for suite, files in plan.config.banks.items()
        for kind, path in files.items()
    ]
    return heads + banks


def _pareto(plan: Plan, metadata: Sequence[Mapping[str, Any]]) -> list[ParetoPoint]:
    """Pareto frontiers of the suites' banks at the step costs of the first part that has some; empty without."""
    known: dict[str, Any] = next((part["costs"] for part in metadata if part.get("costs")), {})
    costs = {kind: StepCost.model_validate(cost) for kind, cost in known.items()}
    ran = dict.fromkeys(unit.suite for unit in plan.units)
    banks = {suite: {kind: load_bank(Path(path)) for kind, path in plan.config.banks[suite].items()} for suite in ran}
    return pareto(banks, costs)


def _histories(metadata: Sequence[Mapping[str, Any]]) -> dict[str, list[Message]]:
    """The messages before each prompt, by prompt id."""
    by_part = (part.get("histories", {}) for part in metadata)
    return {
        prompt: [(role, content) for role, content in messages]
        for histories in by_part
        for prompt, messages in histories.items()
    }


def _shown(source: str) -> str:
    """Name of a heads' source. Bundled heads are named so: a job's copy of the package is gone afterwards."""
    return "bundled" if Path(source) in map(bundled_heads, BUNDLED_KINDS) else source


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
