"""``entmtp calibrate``: calibrate a task and write its tree banks to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from entmtp.calibration.build import make_bank, mixed_provenance, provenance_of, traces_of, write_answers
from entmtp.decoding.measure_cost import step_cost
from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import BUNDLED_KINDS, FOLDER_KINDS, bundled_heads, load_heads
from entmtp.methods import NATIVE
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import checked_dtype, encode_chat, load_model
from entmtp.persistent_paths import cache_folder
from entmtp.settings import CalibrationSettings
from entmtp.suites import MIXED, PAPER_SUITES, load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.bank import TreeBank, load_bank
from entmtp.trees.trace import RankTrace, load_traces, save_traces

_SHOWN = (1, 2, 3, 4, 8, 16, 32, 63)


def calibrate_task(
    *,
    task: str,
    output: Path,
    model: str,
    heads: Sequence[str],
    data: Path | None,
    overrides: Mapping[str, int | None],
    device: str,
    dtype: str = "float32",
    console: Console,
) -> None:
    """Write ``<task>-<kind>.json`` and ``<task>-<kind>.trace.safetensors`` into ``output`` for each kind of heads.

    Only calibration prompts are used; the benchmark scores the others. The task 'mixed' builds one bank for all suites
    from their traces, which must be in ``output`` already.

    Raises:
        EntMTPError: for an invalid option; the message names option, value and fix.
    """
    settings = CalibrationSettings.parse(**{name: value for name, value in overrides.items() if value is not None})
    sources = _sources(model, heads)
    checked_dtype(dtype)
    if task == MIXED:
        _calibrate_mixed(output, model, sources, settings, device, dtype, console)
        return
    suite = load_suite(task, data)
    prompts = [prompt.text for prompt in draw(split(suite.prompts)[0], settings.prompts, seed=0)]
    if not prompts:
        raise EntMTPError(
            f"data: {suite.origin} has no calibration prompt (half are reserved for scoring); give more rows"
        )
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    backbone = build_backbone(loaded)
    folder = output / "text" / task
    # A bank is shared between machines: of a path it records the file's name only.
    origin = Path(suite.origin).name if suite.source == "file" else suite.origin
    console.print(f"{task}: answering {len(prompts)} calibration prompts ({suite.source}: {suite.origin})")

    def progress(answers: int, tokens: int) -> None:
        console.print(
            f"  {answers}/{len(prompts)} answered, {tokens} tokens", end="\r" if console.is_terminal else "\n"
        )

    ids = [encode_chat(tokenizer, prompt) for prompt in prompts]
    write_answers(backbone, ids, folder, settings, progress)
    for kind, source in sources.items():
        attached = load_heads(source, backbone).draft_only()
        traces = traces_of(folder, backbone, attached)
        tokens = sum(len(trace) for trace in traces)
        provenance = provenance_of(backbone, attached, task, origin, prompts, tokens)
        cost = step_cost(backbone, attached, cache_folder(), console.print)
        bank = make_bank(traces, provenance, settings, cost)
        path = output / f"{task}-{kind}.json"
        bank.save(path)
        marks = {
            "task": task,
            "heads": attached.fingerprint,
            "model": backbone.fingerprint,
            "prompts": provenance.prompts_sha256,
        }
        save_traces(output / f"{task}-{kind}.trace.safetensors", traces, marks)
        _report(path, bank, console)


def _calibrate_mixed(
    output: Path,
    model: str,
    sources: Mapping[str, str],
    settings: CalibrationSettings,
    device: str,
    dtype: str,
    console: Console,
) -> None:
    """Write one bank per kind of heads for all suites together."""
    calibrations = {kind: [_load_calibration(output, suite, kind) for suite in PAPER_SUITES] for kind in sources}
    loaded, _ = load_model(model, dtype=dtype, device=device)
    backbone = build_backbone(loaded)
    for kind, parts in calibrations.items():
        attached = load_heads(sources[kind], backbone).draft_only()
        for bank, _ in parts:
            bank.check_heads(
                kind=kind,
                num_heads=attached.num_heads,
                model_fingerprint=backbone.fingerprint,
                heads_fingerprint=attached.fingerprint,
                estimates_acceptance=attached.estimates_acceptance,
            )
        traces = [trace for _, its in parts for trace in its]
        provenance = mixed_provenance([bank.provenance for bank, _ in parts])
        cost = step_cost(backbone, attached, cache_folder(), console.print)
        bank = make_bank(traces, provenance, settings, cost)
        path = output / f"{MIXED}-{kind}.json"
        bank.save(path)
        _report(path, bank, console)


def _load_calibration(output: Path, suite: str, kind: str) -> tuple[TreeBank, list[RankTrace]]:
    """Load the bank and the traces of an earlier calibration."""
    bank, trace = output / f"{suite}-{kind}.json", output / f"{suite}-{kind}.trace.safetensors"
    for path in (bank, trace):
        if not path.is_file():
            raise EntMTPError(
                f"task: '{MIXED}' mixes all suites but {path} does not exist;"
                f" run 'entmtp calibrate --task {suite}' first"
            )
    return load_bank(bank), load_traces(trace)[0]


def _report(path: Path, bank: TreeBank, console: Console) -> None:
    """Print what the bank's trees gain, and how well each calibration predicts held-out texts."""
    gain, chances = bank.overall.gain, bank.chances
    sizes = [size for size in _SHOWN if size < len(gain)]
    console.print(f"{path}: tau by nodes " + ", ".join(f"{size}: {gain[size]:.2f}" for size in sizes))
    if (losses := chances.held_out) is not None:
        console.print(
            f"{path}: log-loss of a guess on held-out texts {losses.plain:.4f} nats, and {losses.sharpness:.4f} with"
            f" the sharpness of distributions, which the bank {_uses(chances.sharpness is not None)}"
        )
        if losses.estimated_odds is not None:
            console.print(
                f"{path}: log-loss {losses.estimated_odds:.4f} nats with the heads' own estimates of acceptance too,"
                f" which the bank {_uses(chances.reads_estimates)}"
            )


def _uses(used: bool) -> str:
    return "uses" if used else "does not use"


def _sources(model: str, heads: Sequence[str]) -> dict[str, str]:
    if not heads:
        if model != "bundled":
            raise EntMTPError(
                f"heads: none are shipped for model '{model}'; give --heads KIND=FOLDER with KIND one of"
                f" {', '.join(FOLDER_KINDS)}, or --heads {NATIVE}={NATIVE} if the model has multi-token-prediction"
                " layers"
            )
        return {kind: str(bundled_heads(kind)) for kind in BUNDLED_KINDS}
    pairs = dict(text.partition("=")[::2] for text in heads)
    for kind, source in pairs.items():
        if (kind not in FOLDER_KINDS or not source) and (kind, source) != (NATIVE, NATIVE):
            raise EntMTPError(
                f"heads: '{kind}={source}' is not KIND=FOLDER with KIND one of {', '.join(FOLDER_KINDS)},"
                f" and not {NATIVE}={NATIVE}"
            )
    return pairs
