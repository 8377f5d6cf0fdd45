"""Loading of the study's report from its `summary.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from benchmarks.lib.record import describe_commit, portable_words
from benchmarks.origin import SHORT_HASH
from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.summary import (
    ArmSummary,
    DepthAcceptance,
    EntropyBin,
    EntropyCorrelation,
    EntropyQuantile,
    LikelihoodDifference,
    Speedup,
    Summary,
    TreeShare,
    TreeUse,
)
from entmtp.intervals import Estimate
from entmtp.provenance import CHANGED

REMEDY = "make it with 'make study'"
Row = TypeVar("Row")


@dataclass(frozen=True)
class Figure:
    """A figure of the report. `caption` explains it to a reader."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Study:
    """A benchmark's report.

    Attributes:
        provenance: of the numbers; values may be nested.
    """

    provenance: Mapping[str, Any]
    caveats: list[str]
    summary: Summary
    figures: list[Figure]

    @property
    def run(self) -> str:
        """The run in a sentence: its command, date, code, machine and size."""
        ran = self.provenance
        settings = ran["settings"]
        prompts, tokens, repetitions = (settings[name] for name in ("prompts", "max_new_tokens", "repetitions"))
        code = describe_commit(self.commit) if self.commit else "code without git"
        times = f"the median of {repetitions} repetitions" if repetitions > 1 else "one repetition"
        return (
            f"`{portable_words(ran['command'])}` of {ran['date']}, {code}, on {ran['hardware']}: up to {prompts}"
            f" prompts a suite, up to {tokens} tokens each, {times}."
        )

    @property
    def commit(self) -> str:
        """The measured commit, shortened and marked as in records; empty without git."""
        commit = str(self.provenance.get("git_commit") or "")
        return commit.removesuffix(CHANGED)[:SHORT_HASH] + CHANGED * commit.endswith(CHANGED)


def read_study(report: Path) -> Study:
    """Read the folder that `write_report` wrote.

    Raises:
        EntMTPError: a file or a table is missing, or of another version; the message names it.
    """
    path = report / "summary.json"
    content = _read(path)
    tables = _part(content, "tables", path)
    summary = Summary(
        arms=_rows(ArmSummary, tables, "arms", path),
        speedups=_rows(Speedup, tables, "speedups", path),
        likelihoods=_rows(LikelihoodDifference, tables, "likelihoods", path),
        depths=_rows(DepthAcceptance, tables, "acceptance", path),
        entropy_bins=_rows(EntropyBin, tables, "entropy", path),
        entropy_correlations=_rows(EntropyCorrelation, tables, "correlations", path),
        tree_shares=_rows(TreeShare, tables, "tree_shares", path),
        tree_uses=_rows(TreeUse, tables, "tree_uses", path),
        entropy_quantiles=_rows(EntropyQuantile, tables, "entropy_quantiles", path),
    )
    figures = [
        Figure(report / figure["file"], figure["title"], figure["caption"])
        for figure in _part(content, "figures", path)
    ]
    return Study(_part(content, "facts", path), _part(content, "caveats", path), summary, figures)


def read_if_run(report: Path) -> Study | None:
    """Read a report as :func:`read_study`; None where there is none."""
    return read_study(report) if (report / "summary.json").exists() else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EntMTPError(f"results: {path} can't be read ({error.strerror}); {REMEDY}") from error
    except ValueError as error:
        raise EntMTPError(f"results: {path} is not JSON ({error}); {REMEDY}") from error


def _part(content: Any, name: str, path: Path) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise EntMTPError(f"results: {path} has no '{name}'; {REMEDY}")
    return content[name]


def _rows(row_type: type[Row], tables: Any, name: str, path: Path) -> list[Row]:
    try:
        return [_row(row_type, row) for row in _part(tables, name, path)]
    except KeyError as error:
        raise EntMTPError(f"results: {path}: table '{name}' has no column {error}; {REMEDY}") from error


def _row(row_type: type[Row], row: Mapping[str, Any]) -> Row:
    """A row of `summary.tables` as ``row_type``: the three columns of an estimate become one field."""
    values: dict[str, Any] = {}
    for name, kind in get_type_hints(row_type).items():
        value = row[name]
        if kind is Estimate:
            known = math.nan if value is None else value
            value = Estimate(known, row[f"{name}_low"], row[f"{name}_high"])
        values[name] = value
    return row_type(**values)
