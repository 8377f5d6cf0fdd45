"""Calibration of one task: prompts in, rank traces and a tree bank out.

First the model answers the calibration prompts greedily. The answers are stored on disk, so that an interrupted run
continues. Rank traces of any heads are computed from the answers, and the bank from the traces.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from entmtp.calibration.fit import fit_predictor, step_table
from entmtp.calibration.fit_chances import fit_chances
from entmtp.calibration.optimal import optimal_order
from entmtp.calibration.policy_replay import ExpansionAt
from entmtp.calibration.rank_trace import rank_trace
from entmtp.calibration.thresholds import PROBES, tuned_bins
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.heads.interface import TracedText
from entmtp.models.backbone import LOGITS_CHUNK, Backbone
from entmtp.policies.rate import Cost
from entmtp.policies.signals import entropy
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import CalibrationSettings, CorpusSettings
from entmtp.suites import MIXED
from entmtp.training.corpus import Text, read_corpus, write_corpus
from entmtp.trees.bank import Frontier, Provenance, TreeBank
from entmtp.trees.predictor import BEFORE_DRAFTING
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace
from entmtp.trees.trace_replay import static_tau
from entmtp.trees.tuning_texts import TuningTexts


def write_answers(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    settings: CalibrationSettings,
    progress: Callable[[int, int], None] = lambda answers, tokens: None,
) -> None:
    """Answer the prompts greedily and write the answers into ``folder``; continues an interrupted run."""
    corpus = CorpusSettings(
        slots=min(16, len(prompts)),
        max_prompt_tokens=settings.max_prompt_tokens,
        max_new_tokens=settings.max_new_tokens,
        sampled_share=0.0,
        part_tokens=2048,
    )
    write_corpus(backbone, prompts, folder, corpus, progress)


@torch.inference_mode()
def traces_of(folder: Path, backbone: Backbone, heads: DraftHeads) -> list[RankTrace]:
    """Compute the rank traces of all answers in ``folder``."""
    traces = []
    for text in read_corpus(folder):
        traced, states = read_text(backbone, heads, text)
        chunks = [entropy(backbone.logits(chunk)) for chunk in states.split(LOGITS_CHUNK)]
        answer = torch.tensor(text.answer, device=backbone.device)
        traces.append(rank_trace(heads, answer, traced, torch.cat(chunks)))
    if not traces:
        raise EntMTPError(f"calibration: {folder} holds no answers; write some first")
    return traces


def expansions_of(folder: Path, backbone: Backbone, heads: DraftHeads) -> list[ExpansionAt]:
    """Return each answer's drafting function of ``heads``, in the order of :func:`traces_of`."""
    return [read_text(backbone, heads, text)[0].expand for text in read_corpus(folder)]


@torch.inference_mode()
def read_text(backbone: Backbone, heads: DraftHeads, text: Text) -> tuple[TracedText, torch.Tensor]:
    """Let the model read a text; return the heads' view of its answer, and the states that chose its tokens."""
    tokens, begin = text.tokens, len(text.prompt)
    states = backbone.read(tokens, heads.feature_layers)
    traced = heads.traced_text(states.features, torch.tensor(tokens, device=backbone.device), begin)
    return traced, states.hidden[begin - 1 : -1]


def make_bank(
    traces: Sequence[RankTrace], provenance: Provenance, settings: CalibrationSettings, cost: Cost
) -> TreeBank:
    """Build a bank: frontiers over all steps and per entropy bin; the bins are the fastest ladder's at ``cost``."""
    by_depth = [_static_frontier(traces, settings.max_nodes, depth) for depth in range(1, traces[0].ranks.shape[1] + 1)]
    overall = by_depth[-1]
    steps = step_table(traces, [overall.tree(size) for size in PROBES], settings.entropy_window)
    tuning = TuningTexts.of(traces, settings.max_rungs)
    thresholds, bins = tuned_bins(tuning, overall, settings.entropy_window, cost)
    return TreeBank(
        provenance=provenance,
        entropy_window=settings.entropy_window,
        thresholds=thresholds,
        overall=overall,
        shallower=by_depth[:-1],
        bins=bins,
        predictor=fit_predictor(steps, BEFORE_DRAFTING),
        chances=fit_chances(traces),
        tuning=tuning,
    )


def _static_frontier(traces: Sequence[RankTrace], nodes: int, depth: int) -> Frontier:
    """Frontier of static trees no deeper than ``depth``; their gains are tokens per step in replay."""
    order = optimal_order(traces, nodes, depth)
    if not order:
        raise EntMTPError("calibration: the heads guessed nothing right on these texts; train them longer")
    gains = [1.0] + [static_tau(traces, Topology.of(order[:size])) for size in range(1, len(order) + 1)]
    return Frontier(paths=order, gain=gains, share=1.0)


def provenance_of(
    backbone: Backbone, heads: DraftHeads, task: str, origin: str, prompts: Sequence[str], tokens: int
) -> Provenance:
    """Return the provenance of a bank that is calibrated now."""
    return Provenance(
        task=task,
        heads_kind=heads.kind,
        model_fingerprint=backbone.fingerprint,
        heads_fingerprint=heads.fingerprint,
        prompts=len(prompts),
        prompts_sha256=hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        prompts_origin=origin,
        tokens=tokens,
        hardware=hardware_name(backbone.device, len(backbone.devices)),
        versions={name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def mixed_provenance(parts: Sequence[Provenance]) -> Provenance:
    """Return the provenance of a mixed bank, from those of the banks whose texts it uses."""
    hashes = json.dumps([one.prompts_sha256 for one in parts])
    return parts[0].model_copy(
        update={
            "task": MIXED,
            "prompts": sum(one.prompts for one in parts),
            "prompts_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
            "prompts_origin": ", ".join(f"{one.task}: {one.prompts_origin}" for one in parts),
            "tokens": sum(one.tokens for one in parts),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
    )
