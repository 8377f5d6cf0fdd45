"""Tune a ladder's thresholds by replay at a machine's step costs, when a bank is made and when it is loaded.

Candidates are the quantiles of the entropy's moving average; every few of them are tried. Each set is judged by the
time that its ladder takes through one half of the texts with trees from the other half, and the other way round, so
that more rungs win only if they would on unseen texts.

The fastest of dozens of candidates on two dozen texts is partly the luckiest. So the one-standard-error rule decides
(Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3): of the ladders that the
fastest beats by no more than a standard error, the one with the fewest rungs. The error is that of the texts' paired
log ratios, so that hard and easy texts do not blur it. A single tree gives way only to what beats it by two errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise

import numpy as np

from entmtp.calibration.ladder_times import ladder_times
from entmtp.calibration.optimal import most_probable_paths
from entmtp.calibration.policy_replay import replay_steps
from entmtp.intervals import paired_ratio
from entmtp.policies.ladder import Ladder, best_rungs
from entmtp.policies.rate import Cost
from entmtp.policies.static import StaticPolicy
from entmtp.settings import LadderSettings
from entmtp.trees.bank import Frontier, TreeBank
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankedText
from entmtp.trees.tuning_texts import TuningTexts

QUANTILES = 8
"""Candidate thresholds divide the entropy into this number of equally frequent parts."""

ERRORS, ERRORS_SINGLE_TREE = 1.0, 2.0
"""Standard errors that the fastest candidate must win by, against fewer rungs and against a single tree.

Where entropy says nothing, the fastest of so many candidates still beats a single tree by more than one error in about
half of all calibrations, and by more than two in one of seven (simulated, 24 texts).
"""

NODES = 16
"""Nodes of the largest rung that is tried: small trees suffice to compare thresholds, and are faster to replay."""

PROBES = (2, 8)
"""Sizes of the trees under whose steps the entropy bins are filled: where a ladder's steps start, small or medium."""

MIN_STEPS_PER_BIN = 100
"""With fewer steps the frequencies of rare paths are too uncertain."""


@dataclass(frozen=True)
class StepStarts:
    """Starts of steps that static trees would take.

    Attributes:
        entropy: ``[rows]`` nats, its moving average.
        ranks: ``[rows, heads]`` true ranks.
        text: ``[rows]`` index of the text.
    """

    entropy: np.ndarray
    ranks: np.ndarray
    text: np.ndarray


def step_starts(texts: Sequence[RankedText], trees: Sequence[Topology], window: int) -> StepStarts:
    """Replay each of ``trees`` through each text; return where their steps start."""
    entropy, ranks, text = [], [], []
    for number, one in enumerate(texts):
        table = one.ranks.numpy()
        for tree in trees:
            for step in replay_steps(one, StaticPolicy(tree, window)):
                entropy.append(step.signals.entropy_ema)
                ranks.append(table[step.position])
                text.append(number)
    return StepStarts(np.array(entropy), np.array(ranks), np.array(text))


def frontier_of(ranks: np.ndarray, nodes: int, share: float) -> Frontier:
    """Build the frontier of steps with true ``ranks [steps, heads]``; gains are sums of the paths' probabilities."""
    found = most_probable_paths(ranks, nodes)
    gain = np.cumsum([1.0] + [probability for _, probability in found])
    return Frontier(paths=[path for path, _ in found], gain=gain.round(5).tolist(), share=share)


def retune(bank: TreeBank, cost: Cost, say: Callable[[str], None]) -> TreeBank:
    """Return the bank with the thresholds and bins of the fastest ladder at ``cost``; equal costs give equal banks.

    A bank without stored texts is returned unchanged, which ``say`` reports.
    """
    if bank.tuning is None:
        say(
            f"bank: that of '{bank.provenance.task}' stores no calibration texts, so its ladder has the thresholds that"
            f" were best on {bank.provenance.hardware}; 'entmtp calibrate' makes one that is tuned where it runs"
        )
        return bank
    thresholds, bins = tuned_bins(bank.tuning, bank.overall, bank.entropy_window, cost)
    return bank.model_copy(update={"thresholds": thresholds, "bins": bins})


def tuned_bins(tuning: TuningTexts, overall: Frontier, window: int, cost: Cost) -> tuple[list[float], list[Frontier]]:
    """Find the fastest ladder's thresholds in nats, and the frontier of each bin, lowest entropy first."""
    texts = tuning.ranked_texts()
    starts = step_starts(texts, [overall.tree(size) for size in PROBES], window)
    thresholds = tuned_thresholds(
        texts,
        starts,
        cost,
        window=window,
        hysteresis=LadderSettings().hysteresis,
        most_rungs=tuning.max_rungs,
        fewest_steps=MIN_STEPS_PER_BIN,
    )
    member = np.searchsorted(thresholds, starts.entropy, side="right")
    bins = [
        frontier_of(starts.ranks[member == number], len(overall.paths), float((member == number).mean()))
        for number in range(len(thresholds) + 1)
    ]
    return thresholds, bins


def tuned_thresholds(
    texts: Sequence[RankedText],
    starts: StepStarts,
    cost: Cost,
    *,
    window: int,
    hysteresis: float,
    most_rungs: int,
    fewest_steps: int,
) -> list[float]:
    """Find the thresholds in nats, increasing, of the ladder that the one-standard-error rule selects.

    The list is empty if no ladder beats a single tree by more than chance, or if there are too few texts. ``starts``
    are of all ``texts``; a rung is built from at least ``fewest_steps`` of them.
    """
    edges = sorted({float(edge) for edge in np.quantile(starts.entropy, np.arange(1, QUANTILES) / QUANTILES).round(4)})
    part = np.searchsorted(edges, starts.entropy, side="right")
    counts = np.bincount(part, minlength=len(edges) + 1)
    tried = [
        chosen
        for size in range(most_rungs)
        for chosen in combinations(range(len(edges)), size)
        if size == 0 or min(each.sum() for each in np.split(counts, np.add(chosen, 1))) >= fewest_steps
    ]
    if len(texts) < 2 or len(tried) < 2:
        return []
    half_of = halves(len(texts))
    price = cache(cost)

    @cache
    def rung(half: int, first: int, last: int) -> Frontier:
        of_half = half_of[starts.text] == half
        inside = of_half & (part >= first) & (part <= last)
        return frontier_of(starts.ranks[inside], NODES, float(inside.sum() / max(1, of_half.sum())))

    def ladder(half: int, chosen: Sequence[int]) -> Ladder:
        """Ladder with the ``chosen`` of ``edges`` as thresholds, and rungs from one half of the texts."""
        bounds = [0, *(at + 1 for at in chosen), len(edges) + 1]
        frontiers = [rung(half, first, last - 1) for first, last in pairwise(bounds)]
        return Ladder(tuple(edges[at] for at in chosen), best_rungs(frontiers, price), window)

    ms = np.zeros((len(tried), len(texts)))
    for half in (0, 1):
        others = np.flatnonzero(half_of != half).tolist()
        ladders = [ladder(half, chosen) for chosen in tried]
        ms[:, others] = ladder_times([texts[at] for at in others], ladders, hysteresis, price)
    return [edges[at] for at in tried[one_standard_error(ms, [len(chosen) for chosen in tried])]]


def halves(count: int) -> np.ndarray:
    """Assign each of ``count`` texts to half 0 or 1, ``[count]``: randomly, as suites may be ordered."""
    return np.random.default_rng(0).permutation(count) % 2


def one_standard_error(ms: np.ndarray, sizes: Sequence[int]) -> int:
    """Index of the candidate with the fewest thresholds that is not significantly slower than the fastest one.

    ``ms [candidates, texts]`` are positive; ``sizes`` are numbers of thresholds, 0 for a single tree. With too few
    texts for a standard error, it is the fastest candidate of the smallest size.
    """
    means = np.log(ms).mean(1)
    fastest = int(means.argmin())
    for size in sorted(set(sizes)):
        candidate = min((at for at, its in enumerate(sizes) if its == size), key=means.__getitem__)
        lost = paired_ratio(ms[candidate], ms[fastest])
        if lost.error is None or lost.mean <= (ERRORS if size else ERRORS_SINGLE_TREE) * lost.error:
            return candidate
    return fastest
