#!/usr/bin/env python3
"""Quality of the bundled heads where it counts: tau on prompts that neither training nor calibration has seen.

    python -m benchmarks.heads --output results/heads

The bundled model answers scored prompts of each suite greedily; the bank's trees (made on other prompts) are replayed
on the heads' rank traces of those answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.calibration.build import traces_of, write_answers
from entmtp.cli_errors import plain_errors
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import CalibrationSettings
from entmtp.suites import PAPER_SUITES, load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.bank import bundled_bank, load_bank
from entmtp.trees.trace_replay import static_tau

SIZES = (1, 2, 3, 4, 8, 16, 32, 63)
NOTE = "Replayed on the heads' rank traces of the model's own greedy answers, from where steps start; nothing is timed."


def main(
    output: Annotated[Path, typer.Option(help="folder that keeps the answers, so that a second run is quick")],
    prompts: Annotated[int, typer.Option(help="scored prompts per suite")] = 16,
    data: Annotated[list[str] | None, typer.Option(help="SUITE=FILE in the hub's schema; may repeat")] = None,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print tau by node budget for both kinds of heads on every suite."""
    files = dict(text.split("=", 1) for text in data or [])
    with plain_errors("heads"):
        model, tokenizer = load_model("bundled")
        backbone = build_backbone(model)
        rows: list[list[Cell]] = []
        for name in PAPER_SUITES:
            suite = load_suite(name, files.get(name))
            scored = draw(split(suite.prompts)[1], prompts, seed=0)
            ids = [encode_chat(tokenizer, prompt.text) for prompt in scored]
            folder = output / name
            write_answers(backbone, ids, folder, CalibrationSettings())
            for kind in BUNDLED_KINDS:
                traces = traces_of(folder, backbone, load_heads(bundled_heads(kind), backbone))
                frontier = load_bank(bundled_bank(name, kind)).overall
                taus = [f"{static_tau(traces, frontier.tree(size)):.2f}" for size in SIZES]
                rows.append([name, suite.source, kind, sum(map(len, traces)), *taus])
        columns = ["suite", "source", "heads", "tokens", *(f"n={size}" for size in SIZES)]
        table = Table(title="tau, root included", columns=columns, rows=rows)
        notes = [f"{prompts} scored prompts per suite; the trees were made on other prompts.", NOTE]
        title = "How much the bundled heads guess"
        deliver(make_record("heads", title, hardware_name(backbone.device), [table], notes), record, uncommitted)


if __name__ == "__main__":
    typer.run(main)
