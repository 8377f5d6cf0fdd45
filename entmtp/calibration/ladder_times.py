"""Vectorised replay: the time that many ladders take through many texts, all at once.

The steps are those that :func:`~entmtp.calibration.policy_replay.replay_steps` finds for a
:class:`~entmtp.policies.ladder.LadderPolicy`, but one line of array arithmetic is a step of every ladder in every
text. So tuning a ladder is fast enough for the load of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entmtp.policies.ladder import Ladder
from entmtp.policies.rate import Cost
from entmtp.trees.trace import RankedText
from entmtp.trees.trace_replay import accepted_of_each


def ladder_times(texts: Sequence[RankedText], ladders: Sequence[Ladder], hysteresis: float, cost: Cost) -> np.ndarray:
    """Replay all ladders, which have the same entropy window, through all texts: milliseconds ``[ladders, texts]``."""
    trees = list(dict.fromkeys(rung for ladder in ladders for rung in ladder.rungs))
    number = {tree: at for at, tree in enumerate(trees)}
    ms = np.array([cost(tree) for tree in trees])
    most = max(len(ladder.rungs) for ladder in ladders)
    rungs = np.zeros((len(ladders), most), dtype=np.int64)
    thresholds = np.full((len(ladders), most - 1), np.inf)  # a rung that a ladder lacks is never used
    for row, ladder in enumerate(ladders):
        rungs[row, : len(ladder.rungs)] = [number[rung] for rung in ladder.rungs]
        thresholds[row, : len(ladder.thresholds)] = ladder.thresholds
    gained = 1 + accepted_of_each(np.concatenate([text.ranks.numpy() for text in texts]), trees)
    entropy = np.concatenate([text.entropy.numpy() for text in texts]).astype(np.float64)

    def rung_of(averages: np.ndarray) -> np.ndarray:
        return (averages[..., None] >= thresholds[:, None]).sum(-1)

    ends = np.cumsum([len(text) for text in texts])
    at = np.tile(ends - [len(text) for text in texts], (len(ladders), 1))
    spent, total = np.zeros(at.shape), np.zeros(at.shape)
    beta, weight = 1 - 1 / ladders[0].entropy_window, 0.0
    which = np.arange(len(ladders))[:, None]
    rung: np.ndarray | None = None
    while (running := at < ends).any():
        here = np.where(running, at, 0)  # a text that has ended reads any position, and its results are masked
        total, weight = beta * total + (1 - beta) * entropy[here], beta * weight + (1 - beta)
        average = total / weight
        current = rung_of(average) if rung is None else rung
        rung = current.clip(rung_of(average - hysteresis), rung_of(average + hysteresis))
        tree = rungs[which, rung]
        spent += np.where(running, ms[tree], 0.0)
        at = at + np.where(running, gained[tree, here], 0)
    return spent
