"""Paired comparisons of arms on the same prompts, and the bars (speedups) that they must reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.lib.record import Cell, Table
from entmtp.intervals import FEWEST_PROMPTS, Estimate, Floats, mean_of_suites, paired_ratio, ratio

MEAN = "mean of suites"


@dataclass(frozen=True)
class TimedText:
    """One timed text of an arm.

    Attributes:
        prompt: the prompt's number in its suite.
        tokens: new tokens of the reference text, for which every arm's time is stated.
        seconds: for that many tokens, the prefill included.
        identical: whether the arm wrote the reference's tokens.
        steps, drafted: forward passes, and tree nodes over all of them, where the arm reports them.
    """

    suite: str
    arm: str
    prompt: int
    tokens: int
    seconds: float
    identical: bool
    steps: int | None = None
    drafted: int = 0


class Comparison:
    """All timed texts. A *scope* is a suite or :data:`MEAN`, the geometric mean of the suites."""

    def __init__(self, timed: Sequence[TimedText]) -> None:
        self._timed = timed
        self.suites = list(dict.fromkeys(row.suite for row in timed))
        self.arms = list(dict.fromkeys(row.arm for row in timed))
        self.scopes = [*self.suites, MEAN]

    def rows(self, scope: str, arm: str) -> list[TimedText]:
        """Texts of ``arm`` in a scope."""
        return [row for row in self._timed if row.arm == arm and scope in (row.suite, MEAN)]

    def speed(self, scope: str, arm: str) -> float:
        """New tokens per second of an arm in a scope."""
        if scope == MEAN:
            return float(np.exp(np.mean([np.log(self.speed(suite, arm)) for suite in self.suites])))
        tokens = {row.prompt: row.tokens for row in self.rows(scope, arm)}
        return float(sum(tokens.values()) / self._seconds(scope, arm).sum())

    def over(self, arm: str, peer: str) -> dict[str, Estimate]:
        """Speedup of the arm over ``peer`` by scope, over paired prompts."""
        found = {suite: paired_ratio(self._seconds(suite, peer), self._seconds(suite, arm)) for suite in self.suites}
        found |= {MEAN: mean_of_suites(list(found.values()))}
        return {scope: each.estimate() for scope, each in found.items()}

    def _seconds(self, suite: str, arm: str) -> Floats:
        """Median seconds over the repetitions, ``[prompts]``, so that other load during one of them does not count."""
        rows = self.rows(suite, arm)
        numbers = sorted({row.prompt for row in rows})
        return np.array([np.median([row.seconds for row in rows if row.prompt == number]) for number in numbers])


@dataclass(frozen=True)
class Bar:
    """The least speedup of ``arm`` over the fastest of ``peers``: on the mean of the suites, or on each of them."""

    arm: str
    peers: tuple[str, ...]
    named: str
    least: float
    on_each: bool

    def judge(self, comparison: Comparison) -> str:
        """A sentence: pass or FAIL by the estimates, with their intervals; no claim without intervals."""
        scopes = comparison.suites if self.on_each else [MEAN]
        against = [comparison.over(self.arm, peer) for peer in self.peers]
        found = {scope: min((one[scope] for one in against), key=lambda each: each.value) for scope in scopes}
        if not all(each.has_interval for each in found.values()):
            return f"no claim: {self} (an interval needs {FEWEST_PROMPTS} prompts in each suite)"
        verdict = "pass" if all(each.value >= self.least for each in found.values()) else "FAIL"
        return f"{verdict}: {self}: " + "; ".join(self._describe(scope, each) for scope, each in found.items())

    def __str__(self) -> str:
        where = "each suite" if self.on_each else "the mean of the suites"
        return f"{self.arm} at least {self.least:.2f}x as fast as {self.named} on {where}"

    def _describe(self, scope: str, found: Estimate) -> str:
        assert found.low is not None
        assert found.high is not None
        unsure = " (the interval holds the bar)" if found.low < self.least <= found.high else ""
        return f"{scope} {ratio(found)}{unsure}"


def table_rows(comparison: Comparison, ours: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of plain numbers, one per scope and arm, with the speedup of each of ``ours`` as value, low and high."""
    over = {(arm, peer): comparison.over(arm, peer) for arm in ours for peer in comparison.arms if peer != arm}
    rows: list[dict[str, Any]] = []
    for scope in comparison.scopes:
        for arm in comparison.arms:
            texts = comparison.rows(scope, arm)
            steps = sum(row.steps or 0 for row in texts)
            row: dict[str, Any] = {"scope": scope, "arm": arm, "tokens_per_s": comparison.speed(scope, arm)}
            row["prompts"] = len({(text.suite, text.prompt) for text in texts})
            row["identical"] = sum(text.identical for text in texts) / len(texts)
            row["tau"] = sum(text.tokens for text in texts) / steps if steps else None
            row["nodes_per_step"] = sum(text.drafted for text in texts) / steps if steps else None
            for one in ours:
                found = over[one, arm][scope] if one != arm else None
                row[f"{one}_over"] = None if found is None else [found.value, found.low, found.high]
            rows.append(row)
    return rows


def to_table(rows: Sequence[dict[str, Any]], ours: Sequence[str], title: str) -> Table:
    """The rows as a table with formatted cells."""
    columns = ["suite", "arm", "tokens/s", "tau", "nodes", "same text", *(f"{arm} over it" for arm in ours)]
    return Table(title=title, columns=columns, rows=[_cells(row, ours) for row in rows])


def _cells(row: dict[str, Any], ours: Sequence[str]) -> list[Cell]:
    tau, nodes = row["tau"], row["nodes_per_step"]
    return [
        row["scope"],
        row["arm"],
        f"{row['tokens_per_s']:.1f}",
        "" if tau is None else f"{tau:.2f}",
        "" if nodes is None else f"{nodes:.1f}",
        f"{row['identical']:.0%}",
        *(ratio(Estimate(*row[f"{arm}_over"])) if row[f"{arm}_over"] else "" for arm in ours),
    ]
