"""What adaptive arms choose, and what they choose by: shares of tree sizes, and how entropy is spread."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from entmtp.evaluation.intervals import Floats
from entmtp.evaluation.summary import AUTOREGRESSIVE, ENTMTP, ORACLE, EntropyQuantile, TreeShare, TreeUse

SIZES: tuple[tuple[int, int | None], ...] = (
    *((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)),
    (33, None),
)
"""Tree sizes that are counted together, in nodes without the root; the last one has no end."""

SHOWN = 5
"""Topologies of an arm that are told by name."""

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def tree_shares(steps: pa.Table, runs: Sequence[tuple[str, str]]) -> list[TreeShare]:
    """How often each adaptive arm, and the oracle, took trees of each of `SIZES`.

    Args:
        steps: step rows; only the first repetition counts, as greedy repetitions are copies.
        runs: the (suite, arm) pairs there are, in the order that tables show.
    """
    first = _first_repetition(steps)
    rows: list[TreeShare] = []
    for suite, arm in runs:
        if not _chooses(arm):
            continue
        nodes = first.filter((pc.field("suite") == suite) & (pc.field("arm") == arm))["nodes"].to_numpy()
        rows += [
            TreeShare(suite=suite, arm=arm, nodes_from=low, nodes_to=high, share=_share(nodes, low, high))
            for low, high in SIZES
            if len(nodes)
        ]
    return rows


def tree_uses(steps: pa.Table, runs: Sequence[tuple[str, str]]) -> list[TreeUse]:
    """The `SHOWN` topologies that each adaptive arm, and the oracle, took most; arguments as `tree_shares`."""
    first = _first_repetition(steps)
    rows: list[TreeUse] = []
    for suite, arm in runs:
        if not _chooses(arm):
            continue
        taken = Counter(first.filter((pc.field("suite") == suite) & (pc.field("arm") == arm))["tree"].to_pylist())
        rows += [
            TreeUse(suite=suite, arm=arm, tree=tree, share=count / taken.total())
            for tree, count in taken.most_common(SHOWN)
        ]
    return rows


def _chooses(arm: str) -> bool:
    return arm.startswith(ENTMTP) or arm == ORACLE


def entropy_quantiles(steps: pa.Table, runs: Sequence[tuple[str, str]]) -> list[EntropyQuantile]:
    """How entropy, in nats, is spread on each suite that plain decoding ran on."""
    rows = []
    for suite, values in plain_entropies(steps, list(dict.fromkeys(suite for suite, _ in runs))).items():
        p10, p25, p50, p75, p90 = (float(value) for value in np.quantile(values, _QUANTILES))
        rows.append(
            EntropyQuantile(
                suite=suite,
                steps=len(values),
                mean=float(values.mean()),
                p10=p10,
                p25=p25,
                p50=p50,
                p75=p75,
                p90=p90,
            )
        )
    return rows


def plain_entropies(steps: pa.Table, suites: Sequence[str]) -> dict[str, Floats]:
    """Entropies in nats at every position of plain decoding's first repetition, by suite; suites without any are left
    out."""
    plain = _first_repetition(steps).filter((pc.field("arm") == AUTOREGRESSIVE) & pc.is_finite(pc.field("entropy")))
    found = {suite: plain.filter(pc.field("suite") == suite)["entropy"].to_numpy() for suite in suites}
    return {suite: values for suite, values in found.items() if len(values)}


def _first_repetition(steps: pa.Table) -> pa.Table:
    return steps.filter(pc.field("repetition") == pc.min(steps["repetition"]))


def _share(nodes: np.ndarray, low: int, high: int | None) -> float:
    return float(((nodes >= low) & (nodes <= (np.inf if high is None else high))).mean())
