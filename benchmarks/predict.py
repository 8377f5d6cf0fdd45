#!/usr/bin/env python3
"""What the methods would gain on a machine that is not at hand: predicted, not measured.

    python -m benchmarks.predict --profile xeon-2-cores --output results/heads
    python -m benchmarks.predict --profile flat --output results/heads        # idealised: any tree costs one step
    python -m benchmarks.predict --profile gpu-like --output results/heads    # idealised: only drafting costs

The bundled model answers scored prompts of each suite greedily; the methods are replayed step by step on its heads'
rank traces, each step at the cost that the machine's hardware profile names, with the kind of heads that it was
measured with. How many tokens a step gains is the bundled model's; what it costs is the profile's, which may be about a
larger model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.record import Cell, Table, deliver, made_record
from entmtp.cli_errors import told_plainly
from entmtp.evaluation.calibration import calibration_texts, growths_of, traces_of
from entmtp.evaluation.replay import DYNAMIC, FLAT, IDEAL, IDEAL_WORDS, POLICIES, cost_of, policies, replay_policy
from entmtp.evaluation.suites import PAPER_SUITES, load_suite, split
from entmtp.evaluation.suites.splits import draw
from entmtp.evaluation.verdicts import ratio
from entmtp.heads.checkpoint import KINDS, bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.registry import encode_chat, load_model
from entmtp.scheduling.cost import PartedCost, hardware_name
from entmtp.scheduling.profiles import load_profile
from entmtp.scheduling.replay import GrowthAt
from entmtp.settings import CalibrationSettings
from entmtp.trees.bank import TreeBank, bundled_bank, load_bank
from entmtp.trees.trace import RankTrace

HINDSIGHT = ("oracle", "hindsight")
METHODS = (*(name for name in POLICIES if name not in ("autoregressive", *HINDSIGHT)), DYNAMIC, *HINDSIGHT)
ACCEPTANCE = "acceptance of the bundled SmolLM2-135M and its heads"
NOTES = (
    "Everything here is predicted by replay; nothing was timed on that machine in this run.",
    f"How many tokens a step gains is the {ACCEPTANCE}, whatever model the step costs are of: that model with heads of"
    " its own may gain more or fewer.",
    "Speedups are over plain decoding at the profile's own cost of a plain step; tau counts the root.",
    "Trees and ladders were chosen from banks that were calibrated on other prompts; only the last two"
    " know the text: oracle takes the best of the bank's trees at each step, hindsight verifies the right path alone.",
)


def main(
    output: Annotated[Path, typer.Option(help="folder that keeps the answers, so that a second run is quick")],
    profile: Annotated[str, typer.Option(help="name or file of a hardware profile, 'flat' or 'gpu-like'")] = FLAT,
    batch: Annotated[int, typer.Option(min=1, help="requests in one step, all with the same tree")] = 1,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens before a step; the profile's least if absent")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="scored prompts per suite")] = 16,
    record: Annotated[Path | None, typer.Option(help="write everything there as a record")] = None,
) -> None:
    """Print predicted tau and speedup of each method, by suite and kind of heads."""
    with told_plainly("predict"):
        cost, kinds, where = _cost(profile, batch, context)
        model, tokenizer = load_model("bundled", device="cuda" if torch.cuda.is_available() else "cpu")
        backbone = Backbone(model)
        rows: list[list[Cell]] = []
        for name in PAPER_SUITES:
            suite = load_suite(name)
            asked = draw(split(suite.prompts)[1], prompts, seed=0)
            folder = output / name
            ids = [encode_chat(tokenizer, prompt.text) for prompt in asked]
            calibration_texts(backbone, ids, folder, CalibrationSettings())
            for kind in kinds:
                heads = load_heads(bundled_heads(kind), backbone)
                traces, growths = traces_of(folder, backbone, heads), growths_of(folder, backbone, heads)
                bank = load_bank(bundled_bank(name, kind))
                rows.append([name, suite.source, kind, *row(traces, growths, bank, cost)])
        title = f"Predicted speedup over plain decoding: {ACCEPTANCE}, at the step costs of {where}"
        table = Table(title="speedup (tau)", columns=["suite", "source", "heads", *METHODS], rows=rows)
        notes = [*NOTES, f"{prompts} prompts per suite."]
        deliver(made_record("predict", title, hardware_name(backbone.device), [table], notes), record)


def _cost(name: str, batch: int, context: int | None) -> tuple[PartedCost, Sequence[str], str]:
    """The cost of a step, the kinds of heads that it holds for, and in words whose it is."""
    cost = cost_of(name, batch, context)
    if name in IDEAL:
        return cost, list(KINDS), f"idealised, no machine: {IDEAL_WORDS[name]}"
    profile = load_profile(name)
    measured = profile.measured
    length = profile.contexts[0] if context is None else context
    where = (
        f"{measured.hardware}, {measured.model}, {measured.heads_kind} heads, {measured.dtype}, batch {batch},"
        f" context {length}, measured {measured.date[:10]}"
    )
    return cost, [measured.heads_kind], where


@torch.inference_mode()
def row(traces: list[RankTrace], growths: list[GrowthAt], bank: TreeBank, cost: PartedCost) -> list[str]:
    """Speedup and tau of each of :data:`METHODS`."""
    made = policies(bank, cost, traces[0].ranks.shape[1], typer.echo)
    found = [replay_policy(traces, made[name], cost, growths) for name in METHODS]
    return [f"{ratio(one.speedup)} ({one.tau:.2f})" for one in found]


if __name__ == "__main__":
    typer.run(main)
