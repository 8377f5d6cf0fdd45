"""The Pareto frontier of static trees: expected tokens per step against the step cost on this machine, by tree size."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from entmtp.policies.step_cost import StepCost
from entmtp.trees.bank import TreeBank


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """The optimal tree of `nodes` nodes (root excluded) for one suite and kind of heads: predicted, not measured."""

    suite: str
    heads: str
    nodes: int
    tau: float  # expected tokens per step on the calibration's texts, the root included
    ms: float  # of a step, by the machine's step cost
    tokens_per_second: float  # between prefill and end


def pareto(banks: Mapping[str, Mapping[str, TreeBank]], costs: Mapping[str, StepCost]) -> list[ParetoPoint]:
    """Points of every tree of each bank's frontier over all steps, plain decoding first.

    Args:
        banks: by suite, then by kind of heads.
        costs: by kind of heads; a kind without a cost is left out.
    """
    return [
        point
        for suite, kinds in banks.items()
        for kind, bank in kinds.items()
        if kind in costs
        for point in _frontier(suite, kind, bank, costs[kind])
    ]


def pareto_table(points: Sequence[ParetoPoint]) -> pa.Table:
    """The points as a flat table."""
    return pa.Table.from_pylist([asdict(point) for point in points])


def fastest(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The point with the most tokens per second of each suite and kind of heads."""
    best: dict[tuple[str, str], ParetoPoint] = {}
    for point in points:
        key = (point.suite, point.heads)
        if key not in best or point.tokens_per_second > best[key].tokens_per_second:
            best[key] = point
    return list(best.values())


def _frontier(suite: str, kind: str, bank: TreeBank, cost: StepCost) -> list[ParetoPoint]:
    points = []
    for nodes, (tree, tau) in enumerate(zip(bank.overall.trees, bank.overall.gain, strict=True)):
        ms = cost(tree)
        points.append(
            ParetoPoint(suite=suite, heads=kind, nodes=nodes, tau=tau, ms=ms, tokens_per_second=1000 * tau / ms)
        )
    return points
