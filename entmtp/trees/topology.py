"""Tree topologies: the continuations that a step drafts, as child ranks from the root.

A path is a tuple of child ranks: ``(0,)`` is the first head's top token, ``(0, 1)`` the second-best continuation of it.
Medusa (arXiv 2401.10774, section 2.1.2) calls the set of paths 'choices'. Node 0 of every derived tensor is the root,
the token that the model itself chose last. The empty topology (root only) is plain decoding.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch

from entmtp.errors import EntMTPError

Path = tuple[int, ...]


_PLAIN = "n0"
"""Name of plain decoding's tree."""


class Shape(NamedTuple):
    """Summary of a tree: nodes without the root, depth, and the largest number of nodes of a level."""

    nodes: int
    depth: int
    width: int

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read the shape from the :attr:`Topology.name` of a tree.

        Raises:
            ValueError: if ``name`` is not the name of a tree.
        """
        if name == _PLAIN:
            return cls(0, 0, 0)
        match = re.fullmatch(r"n(\d+)-d(\d+)-w(\d+)-[0-9a-f]{8}", name)
        if match is None:
            raise ValueError(f"'{name}' is not the name of a tree, such as 'n8-d4-w3-1f2e3d4c'")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"n{self.nodes} d{self.depth} w{self.width}"


@dataclass(frozen=True)
class Topology:
    """An immutable prefix-closed set of paths in canonical order (by depth, then path).

    Build one with :meth:`of`. A topology is *data* of a step and may differ between steps and requests.
    """

    paths: tuple[Path, ...]

    @classmethod
    def of(cls, paths: Iterable[Sequence[int]], *, max_depth: int | None = None) -> Topology:
        """Check and order ``paths``.

        Raises:
            EntMTPError: if there are none, one is malformed, one lacks its parent, or one is deeper than ``max_depth``
                (the number of heads). The message names the path.
        """
        ordered = sorted({_checked(path) for path in paths}, key=lambda path: (len(path), path))
        if not ordered:
            raise EntMTPError("topology: it has no paths; give at least one, or use Topology.root_only()")
        known = set(ordered)
        for path in ordered:
            if len(path) > 1 and path[:-1] not in known:
                raise EntMTPError(
                    f"topology: path {path} lacks its parent {path[:-1]}; add the parent or drop the path"
                )
        topology = cls(tuple(ordered))
        if max_depth is not None:
            topology.check_depth(max_depth)
        return topology

    @classmethod
    def root_only(cls) -> Topology:
        """The tree of plain decoding, which drafts nothing."""
        return cls(())

    def truncated(self, nodes: int) -> Topology:
        """The tree cut to the ``nodes`` paths with the smallest sum of ranks, counted from 1.

        A parent has a smaller sum than its children, so the result is prefix-closed.
        """
        if self.nodes <= nodes:
            return self
        ordered = sorted(self.paths, key=lambda path: (sum(path) + len(path), path))
        return Topology.of(ordered[:nodes]) if nodes else Topology.root_only()

    def check_depth(self, max_depth: int) -> None:
        """Raise EntMTPError, naming the path, if a path is deeper than ``max_depth`` heads can draft."""
        for path in self.paths:
            if len(path) > max_depth:
                raise EntMTPError(
                    f"topology: path {path} has depth {len(path)} but there are only {max_depth} draft heads;"
                    " shorten the path or use deeper heads"
                )

    @cached_property
    def name(self) -> str:
        """Name of the tree: its shape, and a checksum that distinguishes trees of one shape."""
        if not self.paths:
            return _PLAIN
        nodes, depth, width = self.shape
        return f"n{nodes}-d{depth}-w{width}-{zlib.crc32(repr(self.paths).encode()):08x}"

    @cached_property
    def shape(self) -> Shape:
        """Size, depth and width of the tree."""
        return Shape(self.nodes, self.max_depth, max(Counter(map(len, self.paths)).values(), default=0))

    @property
    def nodes(self) -> int:
        """Node budget: nodes without the root."""
        return len(self.paths)

    @property
    def max_depth(self) -> int:
        """Depth of the deepest path; 0 for plain decoding."""
        return len(self.paths[-1]) if self.paths else 0

    @cached_property
    def index(self) -> dict[Path, int]:
        """Node number of each path, the root ``()`` being 0."""
        return {(): 0} | {path: number for number, path in enumerate(self.paths, start=1)}

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Parent of each node ``[nodes + 1]``; the root is its own parent."""
        return (0, *(self.index[path[:-1]] for path in self.paths))

    @cached_property
    def lineages(self) -> tuple[tuple[int, ...], ...]:
        """Path of node numbers from the root to each node ``[nodes + 1]``, including the node."""
        lineages: list[tuple[int, ...]] = [(0,)]
        for node in range(1, self.nodes + 1):
            lineages.append((*lineages[self.parents[node]], node))
        return tuple(lineages)

    @cached_property
    def ancestor_bits(self) -> tuple[int, ...]:
        """Number per node ``[nodes + 1]`` whose bit j is set where j is the node or an ancestor of it."""
        bits = [1]
        for node in range(1, self.nodes + 1):
            bits.append(bits[self.parents[node]] | 1 << node)
        return tuple(bits)

    @cached_property
    def internal_nodes(self) -> tuple[tuple[int, ...], ...]:
        """Nodes with children, per depth 0, 1, ...: the nodes that the heads expand."""
        levels: list[list[int]] = [[] for _ in range(self.max_depth)]
        for node in sorted(set(self.parents[1:])):
            levels[len(self.lineages[node]) - 1].append(node)
        return tuple(tuple(level) for level in levels)

    @cached_property
    def parent(self) -> torch.Tensor:
        """:attr:`parents` as int64."""
        return torch.tensor(self.parents)

    @cached_property
    def depth(self) -> torch.Tensor:
        """Depth ``[nodes + 1]``, int64; 0 for the root."""
        return torch.tensor([0] + [len(path) for path in self.paths])

    @cached_property
    def rank(self) -> torch.Tensor:
        """Child rank ``[nodes + 1]``, int64; 0 for the root."""
        return torch.tensor([0] + [path[-1] for path in self.paths])

    @cached_property
    def ancestors(self) -> torch.Tensor:
        """Ancestor mask ``[nodes + 1, nodes + 1]``, bool: ``[i, j]`` is True where j is i or an ancestor of i."""
        mask = torch.zeros(self.nodes + 1, self.nodes + 1, dtype=torch.bool)
        for node, lineage in enumerate(self.lineages):
            mask[node, list(lineage)] = True
        return mask

    @cached_property
    def max_rank(self) -> tuple[int, ...]:
        """Highest child rank at depths 1, 2, ...: the heads must rank their tokens that far."""
        highest = [0] * self.max_depth
        for path in self.paths:
            highest[len(path) - 1] = max(highest[len(path) - 1], path[-1])
        return tuple(highest)


def _checked(path: Sequence[int]) -> Path:
    ranks = tuple(path) if isinstance(path, Iterable) else ()
    if not ranks or any(not isinstance(rank, int) or isinstance(rank, bool) or rank < 0 for rank in ranks):
        raise EntMTPError(f"topology: path {path!r} is not a non-empty list of child ranks >= 0, such as [0, 1]")
    return ranks
