"""Calibration: prompts of a task in, rank traces and a tree bank out.

The model answers the calibration prompts greedily once (kept on disk, so that an interrupted run continues); the rank
traces of any heads follow from that text, and the bank from the traces.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from entmtp.errors import EntMTPError
from entmtp.evaluation.prediction import fit_chances, fit_predictor, step_rows
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.scheduling.cost import hardware_name
from entmtp.scheduling.signals import entropy
from entmtp.settings import CalibrationSettings, CorpusSettings
from entmtp.training.corpus import part_paths, read_part, write_corpus
from entmtp.trees.bank import Frontier, Provenance, TreeBank
from entmtp.trees.optimal import most_probable_paths, optimal_order
from entmtp.trees.predictor import BEFORE_DRAFTING, FEATURES
from entmtp.trees.replay import replayed_tau
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace, rank_trace

MIN_STEPS_PER_BIN = 100
"""Fewer steps say too little about which of the rarer paths are worth a node."""

PROBES = (2, 8)
"""Sizes of the trees under whose steps the entropy bins are filled: where a ladder's steps start, small or medium."""

_ENTROPY_ROWS = 64


def calibration_texts(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    settings: CalibrationSettings,
    progress: Callable[[int, int], None] = lambda answers, tokens: None,
) -> None:
    """Answers the prompts greedily into ``folder``; continues an interrupted run."""
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
    """Rank traces of every answer in ``folder`` under ``heads``."""
    traces = []
    for path in part_paths(folder):
        part = read_part(path)
        for begin, end in zip(part.starts[:-1].tolist(), part.starts[1:].tolist(), strict=True):
            tokens = part.tokens[begin:end].to(backbone.device)
            states = part.states[begin:end].to(backbone.device, backbone.dtype)
            chunks = [entropy(backbone.logits(chunk)) for chunk in states.split(_ENTROPY_ROWS)]
            traces.append(rank_trace(heads, tokens, states, torch.cat(chunks)))
    if not traces:
        raise EntMTPError(f"calibration: {folder} holds no answers; write some first")
    return traces


def make_bank(traces: Sequence[RankTrace], provenance: Provenance, settings: CalibrationSettings) -> TreeBank:
    """The frontiers over all steps and per entropy bin."""
    nodes = settings.max_nodes
    order = optimal_order(traces, nodes)
    if not order:
        raise EntMTPError("calibration: the heads guessed nothing right on these texts; train them longer")
    gains = [1.0] + [replayed_tau(traces, Topology.of(order[:size])) for size in range(1, len(order) + 1)]
    steps = step_rows(traces, [Topology.of(order[:size]) for size in PROBES], settings.entropy_window)
    ema, rows = steps.features[:, FEATURES.index("entropy_ema")], steps.ranks
    bins = max(1, min(settings.max_rungs, len(ema) // MIN_STEPS_PER_BIN))
    # Where many steps share one entropy, quantiles coincide and there are fewer bins.
    thresholds = sorted({float(edge) for edge in np.quantile(ema, np.arange(1, bins) / bins).round(4)})
    member = np.searchsorted(thresholds, ema, side="right")
    frontiers = [
        _frontier(rows[member == number], nodes, float((member == number).mean()))
        for number in range(len(thresholds) + 1)
    ]
    return TreeBank(
        provenance=provenance,
        entropy_window=settings.entropy_window,
        thresholds=thresholds,
        overall=Frontier(paths=order, gain=gains, share=1.0),
        bins=frontiers,
        predictor=fit_predictor(steps, BEFORE_DRAFTING),
        chances=fit_chances(traces),
    )


def _frontier(rows: np.ndarray, nodes: int, share: float) -> Frontier:
    found = most_probable_paths(rows, nodes)
    gain = np.cumsum([1.0] + [probability for _, probability in found])
    return Frontier(paths=[path for path, _ in found], gain=gain.round(5).tolist(), share=share)


def provenance_of(
    backbone: Backbone, heads: DraftHeads, task: str, origin: str, prompts: Sequence[str], tokens: int
) -> Provenance:
    """What a bank must say of itself."""
    return Provenance(
        task=task,
        heads_kind=heads.kind,
        model_fingerprint=backbone.fingerprint,
        heads_fingerprint=heads.fingerprint,
        prompts=len(prompts),
        prompts_sha256=hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        prompts_origin=origin,
        tokens=tokens,
        hardware=hardware_name(backbone.device),
        versions={name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
