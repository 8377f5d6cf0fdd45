"""The main job without its workers: what to run, what is done already, and how what comes in is kept.

``jobs/benchmark.py`` runs the units on a Ray cluster and ``entmtp benchmark`` in this process; both use this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from entmtp.errors import EntMTPError
from entmtp.evaluation.arms import (
    DEFAULT_ARMS,
    LOSSLESS,
    OF_TRAINED,
    TRANSFER,
    check_acceptance,
    check_arms,
    kind_of,
    with_native,
)
from entmtp.evaluation.dispatch import Settled
from entmtp.evaluation.progress import Doing, Progress
from entmtp.evaluation.rows import finished_keys, read_metadata, write_part
from entmtp.evaluation.runner import Workplace
from entmtp.evaluation.storage import Store
from entmtp.evaluation.suites import FAMILIES, get_suite, suite_names
from entmtp.evaluation.summary import AUTOREGRESSIVE, LOSSY
from entmtp.evaluation.tracking import default_tracking_uri
from entmtp.evaluation.units import Unit, make_units
from entmtp.heads.checkpoint import KINDS, bundled_heads, file_hash
from entmtp.heads.native import NATIVE
from entmtp.models.registry import checked_dtype, resolve_model
from entmtp.settings import PROFILES, STUDY, BenchmarkSettings
from entmtp.trees.bank import MIXED, bundled_bank, load_bank

_WRITERS = 4


@dataclass(frozen=True)
class Plan:
    """A validated benchmark: every unit of work, and where its results go.

    Attributes:
        depends_on: everything beside the prompts that all units' rows depend on, each as text.
        retry: units of which prompts were set aside are run again.
    """

    profile: str
    settings: BenchmarkSettings
    arms: list[str]
    place: Workplace
    units: list[Unit]
    results: Store
    tracking_uri: str
    depends_on: dict[str, str]
    retry: bool = False
    command: str = field(default_factory=lambda: " ".join(sys.argv))

    @property
    def parts(self) -> Store:
        """The folder of Parquet parts; runs with other settings have other part names in it."""
        return self.results.at("parts")

    @property
    def waiting(self) -> list[Unit]:
        """Units that are to be run: those whose part does not exist yet."""
        finished = finished_keys(self.parts)
        if self.retry and (done := [unit.key for unit in self.units if unit.key in finished]):
            held = read_metadata(self.parts, done)
            finished -= {key for key, part in zip(done, held, strict=True) if part.get("set_aside")}
        return [unit for unit in self.units if unit.key not in finished]

    def others(self) -> str:
        """A sentence about parts of other settings in the same folder; empty where there are none."""
        foreign = sorted(finished_keys(self.parts) - {unit.key for unit in self.units})
        if not foreign:
            return ""
        theirs = read_metadata(self.parts, foreign[:1])[0].get("depends_on", {})
        differs = [
            f"{name} is {theirs.get(name, 'absent')} there and {self.depends_on.get(name, 'absent')} here"
            for name in {**self.depends_on, **theirs}
            if theirs.get(name) != self.depends_on.get(name)
        ]
        why = f" ({differs[0]})" if theirs and differs else ""
        return f"{len(foreign)} parts in {self.parts} are of other prompts or settings{why}; they stay and are not used"

    def check_hardware(self, hardware: str) -> None:
        """Raises EntMTPError if this plan's units were measured on something else so far."""
        if (before := self.hardware()) not in (None, hardware):
            raise EntMTPError(
                f"results: units in '{self.results}' were measured on '{before}' and here is '{hardware}';"
                " times of both are never mixed: give another --results, or the hardware of before"
            )

    def hardware(self) -> str | None:
        """What the units that are done were measured on; None where none is done."""
        finished = finished_keys(self.parts)
        for unit in self.units:
            if unit.key in finished and (found := read_metadata(self.parts, [unit.key])[0].get("hardware")):
                return str(found)
        return None


def validate(*, profile: str, suites: Sequence[str], arms: Sequence[str], overrides: Mapping[str, int | None]) -> None:
    """What can be told wrong before a cluster is asked for; raises EntMTPError."""
    check_acceptance(check_arms(list(arms)), _settings(profile, overrides).acceptance)
    suite_names(suites)


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
    results: Store,
    tracking_uri: str | None,
    device: str,
    threads: int,
    dtype: str = "float32",
    retry: bool = False,
) -> Plan:
    """Validates everything before any work starts.

    ``heads`` and ``data`` are ``NAME=PATH`` texts; ``banks`` is a folder with ``<suite>-<kind>.json`` files.

    Raises:
        EntMTPError: names the option, the value and the fix.
    """
    settings = _settings(profile, overrides)
    chosen_suites = suite_names(suites)
    sources = _heads_sources(model, heads)
    chosen_arms = check_arms(list(arms or _default_arms(profile, settings, sources)))
    check_acceptance(chosen_arms, settings.acceptance)
    _check_kinds(chosen_arms, sources)
    tasks = [*chosen_suites, *_foreign_tasks(chosen_suites, chosen_arms)]
    files = {task: {kind: str(_bank_path(task, kind, model, banks)) for kind in sources} for task in tasks}
    checked_dtype(dtype)
    place = Workplace(str(resolve_model(model)), sources, files, device, threads, dtype)
    identity = identity_of(place)
    data_files = _pairs("data", data, list(FAMILIES))
    uncalibrated = [suite for suite in chosen_suites if bank_task(place, suite) == MIXED]
    units = make_units(chosen_suites, data_files, chosen_arms, settings, identity, uncalibrated)
    depends_on = {"arms": ", ".join(chosen_arms)} | {
        name: str(value) for name, value in settings.model_dump(exclude={"prompts"}).items()
    }
    uri = tracking_uri or _default_tracking(results)
    return Plan(profile, settings, chosen_arms, place, units, results, uri, depends_on | identity, retry)


def describe(plan: Plan) -> Iterator[str]:
    """A line about each suite: its prompts, its budget, and whose tree banks it uses."""
    for suite in dict.fromkeys(unit.suite for unit in plan.units):
        units = [unit for unit in plan.units if unit.suite == suite]
        tokens = get_suite(suite).protocol.tokens(plan.settings.max_new_tokens)
        count = sum(len(unit.prompts) for unit in units)
        yield (
            f"{suite}: {count} prompts ({units[0].source}), up to {tokens} new tokens,"
            f" tree banks of '{bank_task(plan.place, suite)}'"
        )


def run_units(
    plan: Plan, run: Callable[[list[Unit]], Iterator[Settled]], console: Console, doing: Doing = list
) -> None:
    """Runs the waiting units through ``run`` and keeps each one's part as it comes in; ``doing`` is for the progress.

    Parts are written beside the loop that hands out work: no worker waits for a storage that is far away.

    Raises:
        EntMTPError: nothing can be written there.
    """
    waiting, total = plan.waiting, len(plan.units)
    if len(waiting) < total:
        console.print(f"{total - len(waiting)} of {total} units are in {plan.parts} already and are not run again")
    if others := plan.others():
        console.print(others, soft_wrap=True)
    writing: list[Future[None]] = []
    with Progress(console, plan.units, waiting, doing) as progress, ThreadPoolExecutor(_WRITERS) as writers:
        for settled in run(waiting):
            writing.append(writers.submit(save_unit, plan, settled))
            while writing and writing[0].done():
                writing.pop(0).result()
            progress.settled(settled)
        for each in writing:
            each.result()


def save_unit(plan: Plan, settled: Settled) -> None:
    """Writes a unit's part; it appears whole or not at all."""
    metadata = {
        "unit": settled.unit.key,
        "depends_on": plan.depends_on,
        "busy_seconds": settled.busy_seconds,
        "set_aside": [asdict(prompt) for prompt in settled.set_aside],
        **settled.measured,
    }
    write_part(plan.parts, settled.unit.key, settled.requests, settled.steps, metadata)


def _settings(profile: str, overrides: Mapping[str, int | None]) -> BenchmarkSettings:
    if profile not in PROFILES:
        raise EntMTPError(f"profile: '{profile}' is unknown; choose one of {', '.join(PROFILES)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return BenchmarkSettings.parse(**(PROFILES[profile].model_dump() | given))


def _default_tracking(results: Store) -> str:
    if results.local is None:
        raise EntMTPError(
            f"tracking_uri: MLflow's database can't lie in '{results}'; give --tracking-uri http://HOST:PORT of a"
            " tracking server, or sqlite:////FOLDER/mlflow.db on this machine"
        )
    return default_tracking_uri(results.local)


def _default_arms(profile: str, settings: BenchmarkSettings, sources: Mapping[str, str]) -> list[str]:
    """What is compared where nothing else is asked for, as far as there are heads for it."""
    usual = with_native(_usual_arms(profile, settings)) if list(sources) == [NATIVE] else _usual_arms(profile, settings)
    return [arm for arm in usual if arm == AUTOREGRESSIVE or kind_of(arm, sources) in sources]


def _usual_arms(profile: str, settings: BenchmarkSettings) -> Sequence[str]:
    if settings.acceptance == "typical":
        return OF_TRAINED
    if settings.temperature > 0:
        return (*DEFAULT_ARMS, *LOSSY)
    return LOSSLESS if profile == STUDY else DEFAULT_ARMS


def bank_task(place: Workplace, suite: str) -> str:
    """The task whose tree banks a suite's arms choose by: its own, or the one that the table of protocols names."""
    return " and ".join(sorted({Path(path).stem.rpartition("-")[0] for path in place.banks[suite].values()}))


def _foreign_tasks(suites: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Whose banks are needed beside the suites' own."""
    transfer = [TRANSFER[get_suite(suite).family] for suite in suites] if "entmtp-transfer" in arms else []
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
    own, other = (
        bundled_bank(task, kind) if banks is None else banks / f"{task}-{kind}.json"
        for task in (suite, MIXED if suite == MIXED else get_suite(suite).protocol.bank)
    )
    path = own if own.is_file() else other
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


def identity_of(place: Workplace) -> dict[str, str]:
    """Hashes of everything beside the prompts that a unit's rows depend on."""
    identity = {"model": place.model, "dtype": place.dtype}
    for kind, source in place.heads.items():
        weights = Path(source) / "model.safetensors"
        identity[f"heads-{kind}"] = file_hash(weights) if weights.is_file() else source
    for suite, files in place.banks.items():
        identity |= {f"bank-{suite}-{kind}": file_hash(Path(path)) for kind, path in files.items()}
    return identity
