"""Sizes and shapes of the trees that adaptive arms choose, and the distribution of the entropy that they choose by."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from entmtp import methods
from entmtp.evaluation.analysis.summary import EntropyQuantile, TreeShare, TreeUse
from entmtp.intervals import Floats
from entmtp.methods import AUTOREGRESSIVE, ENTMTP
from entmtp.trees.topology import Shape

SIZES: tuple[tuple[int, int | None], ...] = (
    *((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)),
    (33, None),
)
"""Ranges of tree sizes, in nodes without the root; the last one is open."""

COMMON = 0.02
"""Least share of an arm's steps for a row of its own; the rarer shapes of a size share a row."""

SHOWN = 5
"""Number of an arm's topologies that are listed by name."""

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def tree_shares(steps: pa.Table, runs: Sequence[tuple[str, str]]) -> list[TreeShare]:
    """Shares of tree shapes, by `SIZES`, of each adaptive arm and each yardstick. Most frequent shapes come first.

    Args:
        steps: step rows; only the first repetition counts, as greedy repetitions are copies.
        runs: the existing (suite, arm) pairs, in the order of tables.
    """
    rows: list[TreeShare] = []
    for (suite, arm), chosen in _chosen_trees(steps, runs).items():
        shapes: Counter[Shape] = Counter()
        for tree, count in chosen.items():
            shapes[Shape.parse(tree)] += count
        for size in SIZES:
            inside = [
                (shape, count / shapes.total()) for shape, count in shapes.most_common() if size_of(shape) == size
            ]
            rows += [
                TreeShare(
                    suite=suite,
                    arm=arm,
                    nodes_from=shape.nodes,
                    nodes_to=shape.nodes,
                    depth=shape.depth,
                    width=shape.width,
                    share=share,
                )
                for shape, share in inside
                if share >= COMMON
            ]
            if rest := sum(share for _, share in inside if share < COMMON):
                low, high = size
                rows.append(
                    TreeShare(suite=suite, arm=arm, nodes_from=low, nodes_to=high, depth=None, width=None, share=rest)
                )
    return rows


def size_of(tree: Shape | TreeShare) -> tuple[int, int | None]:
    """The range of `SIZES` that a shape, or a row of shapes, belongs to."""
    nodes = tree.nodes if isinstance(tree, Shape) else tree.nodes_from
    return next(size for size in reversed(SIZES) if size[0] <= nodes)


def tree_uses(steps: pa.Table, runs: Sequence[tuple[str, str]]) -> list[TreeUse]:
    """The `SHOWN` most frequent topologies of each adaptive arm and each yardstick; arguments as `tree_shares`."""
    return [
        TreeUse(suite=suite, arm=arm, tree=tree, share=count / chosen.total())
        for (suite, arm), chosen in _chosen_trees(steps, runs).items()
        for tree, count in chosen.most_common(SHOWN)
    ]


def _chosen_trees(steps: pa.Table, runs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Counter[str]]:
    """Number of steps by tree name, of each (suite, arm) whose arm chooses its trees."""
    first = _first_repetition(steps)
    return {
        (suite, arm): Counter(first.filter((pc.field("suite") == suite) & (pc.field("arm") == arm))["tree"].to_pylist())
        for suite, arm in runs
        if arm.startswith(ENTMTP) or arm in methods.yardsticks()
    }


def entropy_quantiles(steps: pa.Table, runs: Sequence[tuple[str, str]]) -> list[EntropyQuantile]:
    """Quantiles of entropy, in nats, on each suite that plain decoding ran on."""
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
    """Entropies in nats at every position of plain decoding's first repetition, by suite. Suites without any are
    omitted."""
    plain = _first_repetition(steps).filter((pc.field("arm") == AUTOREGRESSIVE) & pc.is_finite(pc.field("entropy")))
    found = {suite: plain.filter(pc.field("suite") == suite)["entropy"].to_numpy() for suite in suites}
    return {suite: values for suite, values in found.items() if len(values)}


def _first_repetition(steps: pa.Table) -> pa.Table:
    return steps.filter(pc.field("repetition") == pc.min(steps["repetition"]))
