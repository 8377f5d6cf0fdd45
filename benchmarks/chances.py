#!/usr/bin/env python3
"""Compare the dynamic policy before and after its chances depend on sharpness; nothing is timed.

    python -m benchmarks.chances --profile epyc-2-cores --output results/chances
    python -m benchmarks.chances --profile flat --output results/chances --prompts 2     # small, idealised

The bundled model answers calibration and scored prompts of each suite greedily. The answers are stored, so that a
second run is quick. Both calibrations of the heads' probabilities are fitted on the first. On the second they are
scored by log-loss, the policy is replayed with each, and its share of the best policy that knows all chances is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.predict import ACCEPTANCE, Costs, costs_of
from entmtp.calibration.build import expansions_of, traces_of, write_answers
from entmtp.calibration.fit_chances import fit_scaling, guess_tables, held_out_log_loss, total_log_loss
from entmtp.calibration.known_chances_replay import replay_known_chances
from entmtp.calibration.policy_replay import ExpansionAt
from entmtp.calibration.replay import DYNAMIC, FLAT, ReplayResult, replay_policy
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.intervals import CONFIDENCE, interval, mean_of_logs, percent, ratio
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.step_cost import TreeCost, hardware_name
from entmtp.settings import CalibrationSettings
from entmtp.suites import PAPER_SUITES, load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.bank import TreeBank, bundled_bank, load_bank
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.trace import RankTrace

_SOURCE = ("suite", "source", "heads")
LOSSES = ("log-loss before", "saved", "a calibration stores")
SPEEDS = ("before", "after", "after of before", "before of known-chances", "after of known-chances")
NOTES = (
    f"Tokens are those of the {ACCEPTANCE}; step costs are a profile's. Nothing was timed in this run.",
    "before: chances by depth and probability alone. after: by the sharpness of each distribution too. Both were fitted"
    " on the same calibration texts, and everything here is on others.",
    "log-loss: nats per guess at positions where the heads before were right. saved: how much smaller it is after, the"
    f" mean over texts with its {CONFIDENCE:.0%} interval (Student's t over texts, paired).",
    "a calibration stores: what 'entmtp calibrate' would choose on these calibration texts, by cross-validation.",
    f"before, after: {DYNAMIC}'s speedup over plain decoding (tau), in replay. Shares are text by text.",
    "known-chances is the best that a policy could do if the chances after were true; both shares are of that one.",
)


def main(
    output: Annotated[Path, typer.Option(help="folder for the answers, so that a second run is quick")],
    profile: Annotated[str, typer.Option(help="name or file of a hardware profile, 'flat' or 'gpu-like'")] = FLAT,
    prompts: Annotated[int, typer.Option(min=1, help="prompts per suite, to fit on and to judge on, each")] = 32,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print log-loss, speed and share of the yardstick before and after, by suite and kind of heads."""
    with plain_errors("chances"):
        costs = costs_of(profile, 1, None)
        model, tokenizer = load_model("bundled", device="cuda" if torch.cuda.is_available() else "cpu")
        backbone = build_backbone(model)
        tables = [
            Table(title="log-loss on held-out prompts", columns=[*_SOURCE, *LOSSES], rows=[]),
            Table(title=f"{DYNAMIC} in replay of the same prompts", columns=[*_SOURCE, *SPEEDS], rows=[]),
        ]
        for name in PAPER_SUITES:
            suite = load_suite(name)
            halves = dict(zip(("fitted", "held-out"), split(suite.prompts), strict=True))
            for half, of in halves.items():
                ids = [encode_chat(tokenizer, prompt.text) for prompt in draw(of, prompts, seed=0)]
                write_answers(backbone, ids, output / name / half, CalibrationSettings())
            for kind in costs.kinds:
                heads = load_heads(bundled_heads(kind), backbone)
                fitted, scored = (traces_of(output / name / half, backbone, heads) for half in halves)
                expansions = expansions_of(output / name / "held-out", backbone, heads)
                bank = load_bank(bundled_bank(name, kind))
                found = compare(fitted, scored, expansions, bank, costs)
                for table, cells in zip(tables, (found[: len(LOSSES)], found[len(LOSSES) :]), strict=True):
                    table.rows.append([name, suite.source, kind, *cells])
        title = f"What sharpness is to the dynamic policy: {ACCEPTANCE}, at the step costs of {costs.where}"
        notes = [*NOTES, costs.note, f"Up to {prompts} prompts per suite for each purpose."]
        deliver(make_record("chances", title, hardware_name(backbone.device), tables, notes), record, uncommitted)


@torch.inference_mode()
def compare(
    fitted: Sequence[RankTrace],
    scored: Sequence[RankTrace],
    expansions: Sequence[ExpansionAt],
    bank: TreeBank,
    costs: Costs,
) -> list[Cell]:
    """Fit both calibrations and judge them on ``scored``; returns the cells of :data:`LOSSES` and :data:`SPEEDS`.

    Raises:
        EntMTPError: if the machine's costs say nothing of trees that are expanded level by level.
    """
    if (expanded := costs.expanded) is None:
        raise EntMTPError(
            f"profile: {costs.where} did not measure expanding level by level (grown_draft_ms); use 'flat', or a file"
            " of 'python -m benchmarks.step --save-profile FILE'"
        )
    known = guess_tables(fitted)
    after, decided = fit_scaling(known)["sharpness"], held_out_log_loss(known)
    losses = [text_log_losses(chances, scored) for chances in (after.plain, after)]
    saved = mean_of_logs(losses[0] - losses[1]).log_estimate()
    speeds = [_replayed(chances, scored, expansions, bank, expanded) for chances in (after.plain, after)]
    yardstick = replay_known_chances(
        scored, expansions, bank.model_copy(update={"chances": after}), costs.chosen, expanded
    ).best
    return [
        f"{losses[0].mean():.4f}",
        f"{saved.value:+.4f} {interval(saved, 4)}",
        "–" if decided is None else decided.best,
        *(f"{ratio(speed.speedup)} ({speed.tau:.2f})" for speed in speeds),
        percent(speeds[1].share_of(speeds[0])),
        *(percent(speed.share_of(yardstick)) for speed in speeds),
    ]


def _replayed(
    chances: ProbabilityCalibration,
    texts: Sequence[RankTrace],
    expansions: Sequence[ExpansionAt],
    bank: TreeBank,
    cost: TreeCost,
) -> ReplayResult:
    policy = DynamicPolicy(bank.predictor, chances, FixedCost(lambda batch, context: cost), bank.entropy_window)
    return replay_policy(texts, lambda trace: policy, cost, expansions)


def text_log_losses(chances: ProbabilityCalibration, texts: Sequence[RankTrace]) -> np.ndarray:
    """Log-loss of each text in nats per guess ``[texts]``."""
    tables = guess_tables(texts)
    by_text = [[table.where(table.text == number) for table in tables] for number in range(len(texts))]
    return np.array([total_log_loss(chances, each) / sum(head.odds.size for head in each) for each in by_text])


if __name__ == "__main__":
    typer.run(main)
