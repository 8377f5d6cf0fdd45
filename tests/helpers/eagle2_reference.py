"""EAGLE-2's tree, transcribed from sections 4.1 and 4.2 of its paper, and heads that guess from tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from entmtp.heads.interface import Expansion
from entmtp.trees.topology import Path

Table = Callable[[Path], Sequence[float]]
"""Log-probabilities of the tokens after a path, likeliest first."""


def eagle2_tree(table: Table, nodes: int, depth: int, top_k: int = 10) -> set[Path]:
    """The tree of at most ``nodes`` nodes; among equals the shallower, then the one of lower ranks."""
    value: dict[Path, float] = {(): 0.0}
    frontier: list[Path] = [()]
    for _ in range(depth):
        level = {
            (*path, rank): value[path] + log_prob
            for path in frontier
            for rank, log_prob in enumerate(list(table(path))[:top_k])
        }
        value |= level
        frontier = sorted(level, key=lambda path: (-level[path], path))[:top_k]
    del value[()]
    return set(sorted(value, key=lambda path: (-value[path], len(path), path))[:nodes])


class TabledHeads(Expansion):
    """Expansion over the tables of some requests. The token of a node tells its request and path."""

    def __init__(self, tables: Sequence[Table], num_heads: int) -> None:
        self.num_heads = num_heads
        self.widths: list[int] = []
        self._tables = tables
        self._nodes: list[tuple[int, Path]] = [(request, ()) for request in range(len(tables))]

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Guesses after the parents, as many as the tables have."""
        self.widths.append(len(parents))
        expanded = [self._nodes[parent] for parent in parents]
        rows = [list(self._tables[request](path))[:count] for request, path in expanded]
        self._nodes = [(request, (*path, rank)) for request, path in expanded for rank in range(len(rows[0]))]
        tokens = [self.token(request, path) for request, path in self._nodes]
        return torch.tensor(tokens).reshape(len(parents), -1), torch.tensor(rows)

    @staticmethod
    def token(request: int, path: Path) -> int:
        """A number that no other node has."""
        number = request
        for rank in path:
            number = 16 * number + rank + 1
        return number
