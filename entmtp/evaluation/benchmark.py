"""The main job without its workers: what to run, what is done already, and the report at the end.

``jobs/benchmark.py`` runs the units on a Ray cluster and ``entmtp benchmark`` in this process; both use this file.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from entmtp.errors import EntMTPError
from entmtp.evaluation.arms import ARMS, DEFAULT_ARMS, TRANSFER, check_arms, kind_of, with_native
from entmtp.evaluation.metrics import summarise
from entmtp.evaluation.pareto import ParetoPoint, pareto
from entmtp.evaluation.report import print_table, write_report
from entmtp.evaluation.rows import RequestRow, StepRow, part_exists, read_metadata, read_parts, write_part
from entmtp.evaluation.runner import Workplace
from entmtp.evaluation.suites import SUITES, get_suite
from entmtp.evaluation.summary import AUTOREGRESSIVE
from entmtp.evaluation.tracking import TrackedModel, check_tracking, default_tracking_uri, log_benchmark
from entmtp.evaluation.units import Unit, make_units
from entmtp.heads.checkpoint import KINDS, bundled_heads, file_hash
from entmtp.heads.native import NATIVE
from entmtp.models.registry import resolve_model
from entmtp.scheduling.cost import StepCost
from entmtp.settings import PROFILES, STUDY, BenchmarkSettings
from entmtp.trees.bank import MIXED, bundled_bank, load_bank

_VERSIONED = ("entmtp", "torch", "transformers", "ray", "mlflow", "datasets", "numpy")


@dataclass(frozen=True)
class Plan:
    """A validated benchmark: every unit of work, and where its results go."""

    profile: str
    settings: BenchmarkSettings
    arms: list[str]
    place: Workplace
    units: list[Unit]
    results: Path
    tracking_uri: str
    command: str = field(default_factory=lambda: " ".join(sys.argv))

    @property
    def parts(self) -> Path:
        """The folder of Parquet parts; runs with other settings have other part names in it."""
        return self.results / "parts"

    @property
    def waiting(self) -> list[Unit]:
        """Units whose part does not exist yet."""
        return [unit for unit in self.units if not part_exists(self.parts / unit.key)]


def validate(*, profile: str, suites: Sequence[str], arms: Sequence[str], overrides: Mapping[str, int | None]) -> None:
    """What can be told wrong before a cluster is asked for; raises EntMTPError."""
    _settings(profile, overrides)
    check_arms(list(arms))
    for name in suites:
        get_suite(name)


def make_plan(
    *,
    profile: str,
    suites: Sequence[str],
    arms: Sequence[str],
    model: str,
    heads: Sequence[str],
    banks: Path | None,
    data: Sequence[str],
    overrides: Mapping[str, int | None],
    results: Path,
    tracking_uri: str | None,
    device: str,
    threads: int,
) -> Plan:
    """Validates everything before any work starts.

    ``heads`` and ``data`` are ``NAME=PATH`` texts; ``banks`` is a folder with ``<suite>-<kind>.json`` files.

    Raises:
        EntMTPError: names the option, the value and the fix.
    """
    settings = _settings(profile, overrides)
    chosen_suites = list(dict.fromkeys(get_suite(name).name for name in (suites or SUITES)))
    sources = _heads_sources(model, heads)
    usual = ARMS if profile == STUDY else DEFAULT_ARMS
    chosen_arms = check_arms(list(arms or (with_native(usual) if list(sources) == [NATIVE] else usual)))
    _check_kinds(chosen_arms, sources)
    tasks = [*chosen_suites, *_foreign_tasks(chosen_suites, chosen_arms)]
    files = {task: {kind: str(_bank_path(task, kind, model, banks)) for kind in sources} for task in tasks}
    place = Workplace(str(resolve_model(model)), sources, files, device, threads)
    units = make_units(chosen_suites, _pairs("data", data, list(SUITES)), chosen_arms, settings, _identity(place))
    uri = tracking_uri or default_tracking_uri(results)
    check_tracking(uri)
    return Plan(profile, settings, chosen_arms, place, units, results, uri)


def run_units(plan: Plan, run: Callable[[list[Unit]], Iterator[tuple[Unit, Any]]], console: Console) -> None:
    """Runs the waiting units through ``run`` and writes each one's part as it comes in."""
    waiting, total = plan.waiting, len(plan.units)
    done = total - len(waiting)
    if done:
        console.print(f"{done} of {total} units are in {plan.parts} already and are not run again")
    for unit, (requests, steps, measured) in run(waiting):
        save_unit(plan, unit, requests, steps, measured)
        done += 1
        console.print(f"unit {done}/{total}: {unit.suite}, {len(unit.prompts)} prompts, {len(requests)} requests")


def save_unit(
    plan: Plan, unit: Unit, requests: list[RequestRow], steps: list[StepRow], measured: dict[str, Any]
) -> None:
    """Writes a unit's part; it appears whole or not at all."""
    plan.parts.mkdir(parents=True, exist_ok=True)
    write_part(plan.parts / unit.key, requests, steps, {"unit": unit.key, **measured})


def finish(plan: Plan, hardware: str, console: Console) -> Path:
    """Tables, plots, the HTML report and MLflow from the plan's parts; returns the report's path."""
    requests, steps = read_parts(plan.parts, [unit.key for unit in plan.units])
    facts = _facts(plan, hardware)
    print_table(console, summarise(requests, steps), facts)
    folder = plan.results / "report"
    report = write_report(folder, requests, steps, facts, _pareto(plan))
    run = log_benchmark(plan.tracking_uri, "entmtp-benchmark", facts, requests, steps, folder, _tracked(plan))
    console.print(f"\npeak memory of one worker: {facts['peak_memory_mib']} MiB")
    console.print(f"\nreport   {report}\nparts    {plan.parts}\nMLflow   {run.tracking_uri}")
    console.print(f"open it  {run.open_command}", soft_wrap=True)
    return report


def _settings(profile: str, overrides: Mapping[str, int | None]) -> BenchmarkSettings:
    if profile not in PROFILES:
        raise EntMTPError(f"profile: '{profile}' is unknown; choose one of {', '.join(PROFILES)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return BenchmarkSettings.parse(**(PROFILES[profile].model_dump() | given))


def _foreign_tasks(suites: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Whose banks are needed beside the suites' own."""
    transfer = [TRANSFER[suite] for suite in suites] if "entmtp-transfer" in arms else []
    return transfer + [MIXED] * ("entmtp-mixed" in arms)


def _heads_sources(model: str, given: Sequence[str]) -> dict[str, str]:
    if given:
        sources = _pairs("heads", given, [*KINDS, NATIVE])
    elif model == "bundled":
        sources = {kind: str(bundled_heads(kind)) for kind in KINDS}
    else:
        raise EntMTPError(
            f"heads: none are shipped for model '{model}'; give --heads medusa=FOLDER and --heads hydra=FOLDER,"
            f" --heads {NATIVE}={NATIVE} if it has multi-token-prediction layers, or train some with 'entmtp train'"
        )
    if sources.get(NATIVE, NATIVE) != NATIVE:
        raise EntMTPError(f"heads: {NATIVE} ones are the model's own, not '{sources[NATIVE]}'; give {NATIVE}={NATIVE}")
    if list(sources) != [NATIVE] and (missing := [kind for kind in KINDS if kind not in sources]):
        raise EntMTPError(f"heads: kind '{missing[0]}' is missing; give --heads {missing[0]}=FOLDER")
    return sources


def _check_kinds(arms: Sequence[str], sources: Mapping[str, str]) -> None:
    for arm in arms:
        if arm != AUTOREGRESSIVE and (kind := kind_of(arm, sources)) not in sources:
            raise EntMTPError(f"arm: '{arm}' drafts with {kind} heads; give --heads {kind}=… or leave it out")


def _bank_path(suite: str, kind: str, model: str, banks: Path | None) -> Path:
    if banks is None and model != "bundled":
        raise EntMTPError(
            f"banks: none are shipped for model '{model}'; make some with 'entmtp calibrate', give --banks"
        )
    path = bundled_bank(suite, kind) if banks is None else banks / f"{suite}-{kind}.json"
    load_bank(path)
    return path


def _pairs(option: str, texts: Sequence[str], known: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value or name not in known:
            raise EntMTPError(f"{option}: '{text}' is not NAME=PATH with NAME one of {', '.join(known)}")
        pairs[name] = value
    return pairs


def _identity(place: Workplace) -> dict[str, str]:
    """Hashes of everything beside the prompts that a unit's rows depend on."""
    identity = {"model": place.model}
    for kind, source in place.heads.items():
        weights = Path(source) / "model.safetensors"
        identity[f"heads-{kind}"] = file_hash(weights) if weights.is_file() else source
    for suite, files in place.banks.items():
        identity |= {f"bank-{suite}-{kind}": file_hash(Path(path)) for kind, path in files.items()}
    return identity


def _tracked(plan: Plan) -> list[TrackedModel]:
    heads = [
        TrackedModel(f"{kind}-heads", Path(source), "draft-heads")
        for kind, source in plan.place.heads.items()
        if Path(source).is_dir()
    ]
    banks = [
        TrackedModel(f"{suite}-{kind}-bank", Path(path), "tree-bank")
        for suite, files in plan.place.banks.items()
        for kind, path in files.items()
    ]
    return heads + banks


def _facts(plan: Plan, hardware: str) -> dict[str, Any]:
    return {
        "profile": plan.profile,
        "settings": plan.settings.model_dump(),
        "command": plan.command,
        "model": plan.place.model,
        "heads": {kind: _shown(source) for kind, source in plan.place.heads.items()},
        "hashes": _identity(plan.place),
        "hardware": hardware,
        "peak_memory_mib": max(_peak_memory(plan)),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _VERSIONED} | {"python": platform.python_version()},
        "git_commit": os.environ.get("ENTMTP_GIT_COMMIT") or _git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _pareto(plan: Plan) -> list[ParetoPoint]:
    """The frontiers of the suites' banks at the step costs that the first unit's part tells; none if it tells none."""
    known = read_metadata(plan.parts / plan.units[0].key).get("costs", {})
    costs = {kind: StepCost.model_validate(cost) for kind, cost in known.items()}
    ran = dict.fromkeys(unit.suite for unit in plan.units)
    banks = {suite: {kind: load_bank(Path(path)) for kind, path in plan.place.banks[suite].items()} for suite in ran}
    return pareto(banks, costs)


def _shown(source: str) -> str:
    """A job's copy of the package lies in a folder that is gone afterwards."""
    return "bundled" if Path(source) in map(bundled_heads, KINDS) else source


def _peak_memory(plan: Plan) -> list[int]:
    """Of the workers, in MiB, as each finished unit tells it."""
    return [round(read_metadata(plan.parts / unit.key)["peak_memory_mib"]) for unit in plan.units]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The checkout's commit; None where the job runs from an uploaded copy or there is no git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
