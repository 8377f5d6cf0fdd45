#!/usr/bin/env python3
"""Predict the methods' speedups on another machine, by replay; nothing is timed.

    python -m benchmarks.predict --profile epyc-2-cores --output results/heads
    python -m benchmarks.predict --profile flat --output results/heads        # idealised: any tree costs one step
    python -m benchmarks.predict --profile gpu-like --output results/heads    # idealised: only drafting costs

The bundled model answers scored prompts of each suite greedily. The methods are replayed step by step on its heads'
rank traces, each step at the cost of the machine's hardware profile. The heads are of the kind that the profile was
measured with. The tokens that a step gains are the bundled model's. The cost of a step is the profile's, which may be
of a larger model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp import methods
from entmtp.calibration.build import expansions_of, traces_of, write_answers
from entmtp.calibration.known_chances_replay import replay_known_chances
from entmtp.calibration.policy_replay import ExpansionAt
from entmtp.calibration.replay import (
    DYNAMIC,
    FLAT,
    IDEAL,
    IDEAL_DESCRIPTIONS,
    KNOWN_CHANCES,
    DecodingSpeed,
    cost_of,
    expanded_cost_of,
    policies,
    replay_policy,
)
from entmtp.cli_errors import plain_errors
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.intervals import CONFIDENCE, percent, ratio
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.hardware_profile import load_profile
from entmtp.policies.registry import find_policy
from entmtp.policies.step_cost import TreeCost, hardware_name
from entmtp.settings import CalibrationSettings
from entmtp.suites import PAPER_SUITES, load_suite, split
from entmtp.suites.splits import draw
from entmtp.trees.bank import TreeBank, bundled_bank, load_bank
from entmtp.trees.trace import RankTrace

METHODS = tuple(name for name in methods.policies(BUNDLED_KINDS) if name != methods.AUTOREGRESSIVE)
"""Policies of the methods that run with the bundled heads."""
SHARED = ("best-static", "ladder", "goodput", DYNAMIC, KNOWN_CHANCES)
_SOURCE = ("suite", "source", "heads")
_KNOWN = (KNOWN_CHANCES, DYNAMIC, "hindsight", "dynamic of known-chances", "known-chances of hindsight")
ACCEPTANCE = "acceptance of the bundled SmolLM2-135M and its heads"
NOTES = (
    "Everything here is predicted by replay; nothing was timed on that machine in this run.",
    f"How many tokens a step gains is the {ACCEPTANCE}, whatever model the step costs are of: that model with heads of"
    " its own may gain more or fewer.",
    "Speedups are over plain decoding at the profile's own cost of a plain step; tau counts the root.",
    "Trees and ladders were chosen from banks that were calibrated on other prompts; only the last two know the text:"
    " bank-oracle takes the best of the bank's trees at each step, hindsight verifies the right path alone.",
    "A share is a method's speed over the yardstick's, text by text. known-chances is the best that a policy could do"
    " that knows the heads' calibrated chances exactly, in expectation, where those chances are true; it verifies"
    " before it knows what is right, so that a policy can come near it.",
    "Where the chances are exact: steps start where dynamic's start in the texts, hindsight knows the right path of"
    " each. Nothing is drawn, so there is no seed.",
    f"Intervals are {CONFIDENCE:.0%} over texts: speedups have the jackknife on the logarithm with Student's t, shares"
    " Student's t on the logs of paired ratios. Each holds for its own comparison: of twenty, one may miss.",
)
EXPANDED = (
    "dynamic's drafting is charged level by level, with the host's part between levels, as the profile measured it."
)
IDEAL_EXPANDED = "dynamic's drafting is charged as filling a tree: an ideal host takes no time between levels."
NOT_EXPANDED = (
    "dynamic is not predicted: its trees are expanded level by level, with the host between levels, which this profile"
    " did not measure (grown_draft_ms; 'python -m benchmarks.step --save-profile FILE' does)."
)


@dataclass(frozen=True)
class Costs:
    """Step costs of the machine that the prediction is for.

    Attributes:
        chosen: cost of steps whose trees are chosen before the heads run.
        expanded: cost of steps whose trees are expanded while the heads draft; None if it was not measured.
        kinds: kinds of heads that the costs apply to.
        where: description of the machine.
        note: how expanding is charged.
    """

    chosen: TreeCost
    expanded: TreeCost | None
    kinds: Sequence[str]
    where: str
    note: str


def main(
    output: Annotated[Path, typer.Option(help="folder for the answers, so that a second run is quick")],
    profile: Annotated[str, typer.Option(help="name or file of a hardware profile, 'flat' or 'gpu-like'")] = FLAT,
    batch: Annotated[int, typer.Option(min=1, help="requests in one step, all with the same tree")] = 1,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens before a step; the profile's least if absent")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="scored prompts per suite")] = 16,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print predicted tau and speedup of each method and its share of each yardstick, by suite and kind of heads."""
    with plain_errors("predict"):
        costs = costs_of(profile, batch, context)
        model, tokenizer = load_model("bundled", device="cuda" if torch.cuda.is_available() else "cpu")
        backbone = build_backbone(model)
        tables = [
            Table(title="speedup (tau)", columns=[*_SOURCE, *METHODS], rows=[]),
            Table(
                title="share of each yardstick's speed", columns=[*_SOURCE, "yardstick", "speedup", *SHARED], rows=[]
            ),
            Table(title="where the heads' chances are exact", columns=[*_SOURCE, *_KNOWN], rows=[]),
        ]
        for name in PAPER_SUITES:
            suite = load_suite(name)
            drawn = draw(split(suite.prompts)[1], prompts, seed=0)
            folder = output / name
            ids = [encode_chat(tokenizer, prompt.text) for prompt in drawn]
            write_answers(backbone, ids, folder, CalibrationSettings())
            for kind in costs.kinds:
                heads = load_heads(bundled_heads(kind), backbone)
                traces, expansions = traces_of(folder, backbone, heads), expansions_of(folder, backbone, heads)
                source: list[Cell] = [name, suite.source, kind]
                found = predict(traces, expansions, load_bank(bundled_bank(name, kind)), costs)
                for table, cells in zip(tables, (found.speedups, found.shares, found.known), strict=True):
                    table.rows.extend([*source, *row] for row in cells)
        title = f"Predicted speedup over plain decoding: {ACCEPTANCE}, at the step costs of {costs.where}"
        notes = [*NOTES, costs.note, f"{prompts} prompts per suite."]
        deliver(make_record("predict", title, hardware_name(backbone.device), tables, notes), record, uncommitted)


def costs_of(name: str, batch: int, context: int | None) -> Costs:
    """Costs of a hardware profile or an idealised machine, by its name."""
    chosen, expanded = cost_of(name, batch, context), expanded_cost_of(name, batch, context)
    if name in IDEAL:
        return Costs(
            chosen, expanded, list(BUNDLED_KINDS), f"no machine, idealised: {IDEAL_DESCRIPTIONS[name]}", IDEAL_EXPANDED
        )
    profile = load_profile(name)
    measured = profile.measured
    length = profile.contexts[0] if context is None else context
    where = (
        f"{measured.hardware}, {measured.model}, {measured.heads_kind} heads, {measured.dtype}, batch {batch},"
        f" context {length}, measured {measured.date[:10]}"
    )
    return Costs(chosen, expanded, [measured.heads_kind], where, NOT_EXPANDED if expanded is None else EXPANDED)


@dataclass(frozen=True)
class Predicted:
    """Table rows of one suite and kind of heads, for each of the three tables."""

    speedups: list[list[str]]
    shares: list[list[str]]
    known: list[list[str]]


@torch.inference_mode()
def predict(traces: list[RankTrace], expansions: list[ExpansionAt], bank: TreeBank, costs: Costs) -> Predicted:
    """Predict the speedup of each of :data:`METHODS` on texts, and its share of each yardstick."""
    made = policies(bank, costs.chosen, traces[0].ranks.shape[1], costs.expanded, typer.echo)
    drafting = [name for name in METHODS if find_policy(name).drafts]
    found: dict[str, DecodingSpeed] = {
        name: replay_policy(traces, made[name], costs.chosen) for name in METHODS if name not in drafting
    }
    if costs.expanded is not None:
        found |= {name: replay_policy(traces, made[name], costs.expanded, expansions) for name in drafting}
    known_chances = replay_known_chances(traces, expansions, bank, costs.chosen, costs.expanded)
    speedups = [_speed(found.get(name)) for name in METHODS]
    found[KNOWN_CHANCES] = known_chances.best
    shares = [
        [
            yardstick,
            ratio(found[yardstick].speedup),
            *(_share(found.get(name) if name != yardstick else None, found[yardstick]) for name in SHARED),
        ]
        for yardstick in (*methods.yardsticks(), KNOWN_CHANCES)
    ]
    known = [
        _speed(known_chances.best),
        _speed(known_chances.dynamic),
        _speed(known_chances.hindsight),
        _share(known_chances.dynamic, known_chances.best),
        _share(known_chances.best, known_chances.hindsight),
    ]
    return Predicted([speedups], shares, [known])


def _speed(speed: DecodingSpeed | None) -> str:
    return "–" if speed is None else f"{ratio(speed.speedup)} ({speed.tau:.2f})"


def _share(speed: DecodingSpeed | None, yardstick: DecodingSpeed) -> str:
    return "–" if speed is None else percent(speed.share_of(yardstick))


if __name__ == "__main__":
    typer.run(main)
