"""Makes the plan of a benchmark from its options, and checks everything before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from entmtp import methods
from entmtp.errors import EntMTPError
from entmtp.evaluation.results.storage import Store
from entmtp.evaluation.run.arms import (
    check_acceptance,
    default_arms,
    lossless_arms,
    needs_foresight,
    quick_arms,
    transfer_suite,
    with_family,
    with_heads,
)
from entmtp.evaluation.run.options import named_paths
from entmtp.evaluation.run.plan import Plan, bank_task, dependency_hashes
from entmtp.evaluation.run.training_overlap import training_overlap
from entmtp.evaluation.run.units import make_units
from entmtp.evaluation.run.worker import WorkerConfig
from entmtp.heads.checkpoint import BUNDLED_KINDS, FOLDER_KINDS, bundled_heads
from entmtp.methods import AUTOREGRESSIVE, NATIVE, check_arms, heads_of
from entmtp.models.loading.load import checked_dtype, resolve_model
from entmtp.settings import PROFILES, QUICK, STUDIES, BenchmarkSettings
from entmtp.suites import FAMILIES, MIXED, get_suite, suite_names
from entmtp.tracking.client import default_tracking_uri
from entmtp.trees.bank import bundled_bank, load_bank


def validate(*, profile: str, suites: Sequence[str], arms: Sequence[str], overrides: Mapping[str, int | None]) -> None:
    """Check what needs no device, before a cluster is requested. Raises EntMTPError."""
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
    """Make a validated plan.

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
    config = WorkerConfig(str(resolve_model(model)), sources, files, device, threads, dtype)
    identity = dependency_hashes(config)
    data_files = named_paths("data", data, FAMILIES)
    uncalibrated = [suite for suite in chosen_suites if bank_task(config, suite) == MIXED]
    units = make_units(chosen_suites, data_files, chosen_arms, settings, identity, uncalibrated)
    depends_on = {"arms": ", ".join(chosen_arms)} | {
        name: str(value) for name, value in settings.model_dump(exclude={"prompts"}).items()
    }
    uri = tracking_uri or _default_tracking(results)
    overlap = training_overlap(units, sources)
    return Plan(profile, settings, chosen_arms, config, units, results, uri, depends_on | identity, overlap, retry)


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
    """Arms of a profile for which heads are loaded."""
    usual = _usual_arms(profile, settings)
    return with_family(usual, *sources) if len(sources) == 1 else with_heads(usual, sources)


def _usual_arms(profile: str, settings: BenchmarkSettings) -> Sequence[str]:
    """Arms of a profile, whatever heads there are."""
    known = lossless_arms() if profile in STUDIES else default_arms()
    if settings.acceptance == "typical":
        return [arm for arm in known if not needs_foresight(arm)]
    if settings.temperature > 0:
        return (*known, *methods.lossy())
    return quick_arms() if profile == QUICK else known


def _foreign_tasks(suites: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Names of the banks that arms need in addition to the suites' own."""
    transfer = [transfer_suite(get_suite(suite).family) for suite in suites] if "entmtp-transfer" in arms else []
    return transfer + [MIXED] * ("entmtp-mixed" in arms)


def _heads_sources(model: str, given: Sequence[str]) -> dict[str, str]:
    if given:
        sources = named_paths("heads", given, methods.FAMILIES)
    elif model == "bundled":
        sources = {kind: str(bundled_heads(kind)) for kind in BUNDLED_KINDS}
    else:
        raise EntMTPError(
            f"heads: none are shipped for model '{model}'; give --heads KIND=FOLDER with KIND one of"
            f" {', '.join(FOLDER_KINDS)}, --heads {NATIVE}={NATIVE} if it has multi-token-prediction layers, or train"
            " some with 'entmtp train'"
        )
    if sources.get(NATIVE, NATIVE) != NATIVE:
        raise EntMTPError(f"heads: {NATIVE} ones are the model's own, not '{sources[NATIVE]}'; give {NATIVE}={NATIVE}")
    return sources


def _check_kinds(arms: Sequence[str], sources: Mapping[str, str]) -> None:
    for arm in arms:
        if arm != AUTOREGRESSIVE and (kind := heads_of(arm, sources)) not in sources:
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
