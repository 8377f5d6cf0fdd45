#!/usr/bin/env python3
"""Measure how well each signal predicts the next accepted length: fitted on calibration texts, scored on others.

    python -m benchmarks.signals --output results/signals

The bundled model answers calibration and scored prompts of each suite greedily. The answers are stored, so that a
second run is quick. A predictor for each set of signals is fitted on the first and scored on the second, for a step
with a 16-node tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.calibration.build import traces_of, write_answers
from entmtp.calibration.fit import PredictorQuality, fit_predictor, quality, step_table
from entmtp.calibration.optimal import optimal_order
from entmtp.calibration.thresholds import PROBES
from entmtp.cli_errors import plain_errors
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.intervals import CONFIDENCE, interval, mean_of_logs
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import CalibrationSettings
from entmtp.suites import PAPER_SUITES, load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.predictor import FEATURES, Feature
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace

SIGNALS: dict[str, tuple[Feature, ...]] = {
    "entropy": ("entropy", "entropy_ema"),
    "history": ("accepted_ema",),
    "path value": ("confidence",),
    "fused": FEATURES,
}
_TREE = 16
NOTES = (
    f"Of a step with the {_TREE} likeliest nodes, where trees of {PROBES[0]} and {PROBES[1]} nodes start theirs.",
    "log-loss: nats a step, of the accepted length's distribution. ECE: expected calibration error of 'anything is"
    " accepted'. within: correlation of predicted and measured length within texts.",
    f"saved: nats a step less than with entropy alone, the mean over held-out texts with its {CONFIDENCE:.0%} interval"
    " (Student's t over texts, paired); one that holds 0 is inconclusive. Each holds for its own comparison.",
    "path value is the log-probability of the heads' first guess at this very step, known once the first head has run.",
)


def main(
    output: Annotated[Path, typer.Option(help="folder for the answers, so that a second run is quick")],
    prompts: Annotated[int, typer.Option(min=1, help="prompts per suite, to fit on and to judge on, each")] = 32,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print how well each set of signals predicts, by suite and kind of heads."""
    with plain_errors("signals"):
        model, tokenizer = load_model("bundled")
        backbone = build_backbone(model)
        rows: list[list[Cell]] = []
        for name in PAPER_SUITES:
            suite = load_suite(name)
            halves = dict(zip(("fitted", "held-out"), split(suite.prompts), strict=True))
            for half, of in halves.items():
                ids = [encode_chat(tokenizer, prompt.text) for prompt in draw(of, prompts, seed=0)]
                write_answers(backbone, ids, output / name / half, CalibrationSettings())
            for kind in BUNDLED_KINDS:
                heads = load_heads(bundled_heads(kind), backbone)
                fitted, held_out = (traces_of(output / name / half, backbone, heads) for half in halves)
                rows += [[name, suite.source, kind, *row] for row in ablation(fitted, held_out)]
        columns = ["suite", "source", "heads", "signals", "log-loss", "saved", "ECE", "within"]
        table = Table(title="on held-out prompts", columns=columns, rows=rows)
        title = "What each signal knows of the next accepted length"
        notes = [*NOTES, f"Up to {prompts} prompts per suite for each purpose."]
        deliver(make_record("signals", title, hardware_name(backbone.device), [table], notes), record, uncommitted)


def ablation(fitted: Sequence[RankTrace], held_out: Sequence[RankTrace]) -> list[list[Cell]]:
    """Fit and score a predictor for each of :data:`SIGNALS`; returns the table rows."""
    order = optimal_order(fitted, _TREE)
    probes = [Topology.of(order[:size]) for size in PROBES]
    window = CalibrationSettings().entropy_window
    known, scored = (step_table(traces, probes, window) for traces in (fitted, held_out))
    found = {
        name: quality(fit_predictor(known, features), scored, Topology.of(order)) for name, features in SIGNALS.items()
    }
    alone = found["entropy"]
    return [
        [
            name,
            f"{one.log_loss:.3f}",
            "" if one is alone else _saved(one, alone),
            f"{one.calibration_error:.3f}",
            f"{one.within_text:+.2f}",
        ]
        for name, one in found.items()
    ]


def _saved(one: PredictorQuality, alone: PredictorQuality) -> str:
    """The loss that ``one`` saves against ``alone``: '+0.090 [0.050, 0.130]'."""
    saved = mean_of_logs(alone.text_losses - one.text_losses).log_estimate()
    return f"{saved.value:+.3f} {interval(saved, 3)}"


if __name__ == "__main__":
    typer.run(main)
