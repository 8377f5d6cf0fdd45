"""Rate of greedy tokens that trees change in bfloat16, on the bundled model and on the shape (benchmarks.identity)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

from benchmarks import identity
from benchmarks.gpu.assignment import Assignment, Sheet, print_table
from benchmarks.gpu.bundled import bundled_unavailable_reason
from benchmarks.identity import Case
from benchmarks.lib.record import Table
from benchmarks.undrafted import PLAIN
from entmtp.decoding.engine import Engine

CASE = Case("eager", "bfloat16")
TOKENS, DRY_TOKENS = 100, 6
BUNDLED_PROMPTS, SHAPE_PROMPTS = 3, 1
"""Prompts of each suite; the shape gets as many altogether."""
Subject = tuple[dict[str, Engine], list[list[int]]]


def measure(assignment: Assignment) -> None:
    """Compare each method's tokens with plain decoding's."""
    sheet = Sheet(assignment, "identity", "Identity with plain decoding in bfloat16", list(identity.NOTES))
    tables: dict[str, Table] = {}
    cells: dict[str, Callable[[], None]] = {}
    reason = "a dry run takes random weights alone" if assignment.dry else bundled_unavailable_reason()
    if reason:
        sheet.notes.append(f"bundled model: not measured, {reason}.")
        print(sheet.notes[-1])
    else:
        loaded = cache(partial(_subject, assignment, None, BUNDLED_PROMPTS))
        cells |= {
            f"bundled model, {method}": partial(_cell, assignment, sheet, tables, "bundled model", loaded, method)
            for method in identity.METHODS
        }
    shape = f"{assignment.shape}, random weights"
    loaded = cache(partial(_subject, assignment, assignment.shape, SHAPE_PROMPTS))
    cells |= {
        f"{shape}, {nodes} nodes": partial(_cell, assignment, sheet, tables, shape, loaded, f"{nodes} nodes")
        for nodes in identity.TREES
    }
    sheet.fill(cells)
    for table in sheet.tables:
        print_table(table)


def _subject(assignment: Assignment, shape: str | None, prompts: int) -> Subject:
    return identity.subject(CASE, assignment.device, identity.METHODS, shape, prompts)


def _cell(
    assignment: Assignment,
    sheet: Sheet,
    tables: dict[str, Table],
    model: str,
    loaded: Callable[[], Subject],
    method: str,
) -> None:
    engines, prompts = loaded()
    pair = {PLAIN: engines[PLAIN], method: engines[method]}
    found: Mapping[str, identity.Compared] = identity.compare(
        pair, prompts, assignment.pick(TOKENS, DRY_TOKENS), f"{model} {PLAIN}"
    )
    title = f"Greedy tokens that trees change, {model}"
    table = tables.setdefault(model, Table(title=title, columns=identity.COLUMNS, rows=[]))
    table.rows.append(identity.row(CASE, method, found[method]))
    sheet.tables = list(tables.values())
