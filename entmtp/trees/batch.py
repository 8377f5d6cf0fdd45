"""The trees of a step, one topology per request, as sizes and two tensors.

On a GPU the parts of a step are CUDA graphs, which fix the kernels and their sizes but not the numbers. So sizes and
numbers are separate. :class:`TreeShape` is all that kernels may depend on. :attr:`TreeBatch.nodes` and
:attr:`TreeBatch.levels` are everything else, and reach the device in one copy. Any batch of trees replays the graphs of
its shape. Shapes are rounded up, so that there are few of them. Only drafting reads the levels, so that verification
depends on batch rows and width alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from entmtp.trees.topology import Topology

_NODE_FIELDS = 5
_WORD_BITS = 64
_WORD_MASK = (1 << _WORD_BITS) - 1
_ROUNDED_RANKS = 16
"""Top-k sizes are rounded up to this: a larger k costs a GPU next to nothing up to here."""

ROUNDED_WIDTHS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64)
"""Nodes of a captured step's batch rows, root included; wider trees are rounded up to a multiple of the last.

Most of a step is reading weights, up to about 8 rows. From there on every row costs, so that the steps are of 8 rows.
"""
FILLED_SIZES = tuple(width - 1 for width in ROUNDED_WIDTHS)
"""Nodes without the root of the trees that fill these widths: any other costs as much as the next larger of them."""


@dataclass(frozen=True)
class TreeShape:
    """Padded sizes of a batch of trees.

    Attributes:
        batch_rows: rows of the batch, including idle ones.
        width: nodes of each batch row, including the root.
        parents: per depth 0, 1, ... number of nodes with children in the whole batch.
        ranks: per depth 0, 1, ... size k of the top-k from which the children are taken.
        padded: whether a batch row may have fewer nodes than ``width``.
    """

    batch_rows: int
    width: int
    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    padded: bool

    @classmethod
    def of(cls, topologies: Sequence[Topology]) -> TreeShape:
        """The smallest sizes that fit ``topologies``."""
        depth = max(topology.max_depth for topology in topologies)
        deep = [[topology for topology in topologies if topology.max_depth > level] for level in range(depth)]
        return cls(
            batch_rows=len(topologies),
            width=1 + max(topology.nodes for topology in topologies),
            parents=tuple(
                sum(len(topology.internal_nodes[level]) for topology in deep[level]) for level in range(depth)
            ),
            ranks=tuple(1 + max(topology.max_rank[level] for topology in deep[level]) for level in range(depth)),
            padded=len({topology.nodes for topology in topologies}) > 1,
        )

    def rounded(self, batch_rows: int) -> TreeShape:
        """Rounded-up sizes for ``batch_rows`` rows; the width becomes one of :data:`ROUNDED_WIDTHS`.

        They depend on the number of batch rows, the rounded width, the depth, and on unusually high ranks.
        """
        width, depth = rounded_width(self.width), self.depth
        # From depth 1 on, at most (width - 1) / 2 nodes have children, because each has a child of its own.
        parents = [batch_rows * (width // 2 if level else 1) for level in range(depth)]
        ranks = _power_of_two(max((_ROUNDED_RANKS, *self.ranks)))
        return TreeShape(batch_rows, width, tuple(parents), (ranks,) * depth, padded=True)

    @property
    def words(self) -> int:
        """Words of 64 bits that hold a bit for each node of a batch row."""
        return -(-self.width // _WORD_BITS)

    @property
    def depth(self) -> int:
        """Depth of the deepest tree."""
        return len(self.parents)


def rounded_rows(requests: int) -> int:
    """Batch rows of a captured step for so many requests: a power of two up to 8, then a multiple of 8."""
    return _power_of_two(requests) if requests <= 8 else -(-requests // 8) * 8


def rounded_width(width: int) -> int:
    """Nodes of each batch row of a captured step whose widest tree has ``width`` nodes, including the root."""
    widest = ROUNDED_WIDTHS[-1]
    if width > widest:
        return -(-width // widest) * widest
    return ROUNDED_WIDTHS[bisect_left(ROUNDED_WIDTHS, width)]


def filled_size(nodes: int) -> int:
    """Nodes of the largest tree that a captured step takes no longer for than for one of ``nodes`` nodes."""
    return rounded_width(1 + nodes) - 1


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class TreeBatch:
    """Padded trees of a step.

    Attributes:
        topologies: one per request, in batch order. Batch rows after them are idle: all padding.
        shape: the padded sizes.
        nodes: int64 on the device, the per-node tensors below, concatenated.
        levels: int64 on the device, the results of :meth:`internal_nodes` for all levels, concatenated.
    """

    topologies: tuple[Topology, ...]
    shape: TreeShape
    nodes: torch.Tensor
    levels: torch.Tensor

    @classmethod
    def of(
        cls,
        topologies: Sequence[Topology],
        device: torch.device | str = "cpu",
        rounded: bool | None = None,
        rows: int | None = None,
    ) -> TreeBatch:
        """Pad ``topologies`` to a common shape.

        The shape is ``rounded`` (by default on GPUs) or else the smallest. A rounded shape may have more batch
        ``rows`` than trees. Recent batches are cached: the same trees give the same object, with its tensors already on
        the device.
        """
        target = torch.device(device)
        rounded = target.type == "cuda" if rounded is None else rounded
        return _batch(tuple(topologies), target, (rows or len(topologies)) if rounded else None)

    def uncached_copy(self) -> TreeBatch:
        """The same tensors without the cached properties, for a captured graph to compute anew."""
        return TreeBatch(self.topologies, self.shape, self.nodes, self.levels)

    @property
    def width(self) -> int:
        """Padded number of nodes, including the root."""
        return self.shape.width

    @property
    def max_depth(self) -> int:
        """Depth of the deepest tree of the batch."""
        return self.shape.depth

    @cached_property
    def _fields(self) -> torch.Tensor:
        shape = self.shape
        count = _NODE_FIELDS * shape.batch_rows * shape.width
        return self.nodes[:count].view(_NODE_FIELDS, shape.batch_rows, shape.width)

    @cached_property
    def parent(self) -> torch.Tensor:
        """Parent node ``[batch, width]``; 0 on padding."""
        return self._fields[0]

    @cached_property
    def depth(self) -> torch.Tensor:
        """Depth ``[batch, width]``; 0 for the root and on padding."""
        return self._fields[1]

    @cached_property
    def rank(self) -> torch.Tensor:
        """Child rank ``[batch, width]``; 0 for the root and on padding."""
        return self._fields[2]

    @cached_property
    def parent_index(self) -> torch.Tensor:
        """Index ``[batch, width]`` of a node's parent in :meth:`internal_nodes`; 0 for the root and on padding."""
        return self._fields[3]

    @cached_property
    def real(self) -> torch.Tensor:
        """``[batch, width]`` bool; False on padding."""
        return self._fields[4].bool()

    @cached_property
    def ancestor_bits(self) -> torch.Tensor:
        """``[batch, width, words]`` int64: bit j of node i's words is set where j is i or an ancestor of i.

        Bit j is bit ``j % 64`` of word ``j // 64``, bit 63 the sign's. All are 0 on padding.
        """
        rows, width = self.shape.batch_rows, self.shape.width
        return self.nodes[self._fields.numel() :].view(rows, width, self.shape.words)

    @cached_property
    def ancestors(self) -> torch.Tensor:
        """``[batch, width, width]`` bool: ``[b, i, j]`` where j is i or an ancestor of i; False on padding."""
        bit = torch.arange(min(self.width, _WORD_BITS), device=self.nodes.device)
        bits = self.ancestor_bits[..., None] >> bit & 1
        return bits.flatten(2)[..., : self.width].bool()

    def internal_nodes(self, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch row and node number ``[shape.parents[level]]`` of each node with children at depth ``level``.

        Padding repeats the last one.
        """
        begin, count = 2 * sum(self.shape.parents[:level]), self.shape.parents[level]
        request, node = self.levels[begin : begin + 2 * count].view(2, count)
        return request, node


@lru_cache(maxsize=256)
def _batch(topologies: tuple[Topology, ...], device: torch.device, batch_rows: int | None) -> TreeBatch:
    shape = TreeShape.of(topologies)
    shape = shape if batch_rows is None else shape.rounded(batch_rows)
    packed = torch.from_numpy(_numbers(topologies, shape))
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    levels = 2 * sum(shape.parents)
    return TreeBatch(topologies, shape, *packed.split([len(packed) - levels, levels]))


def _numbers(topologies: Sequence[Topology], shape: TreeShape) -> np.ndarray:
    """Nodes, then levels, as one array on the host.

    Every step runs this, so it makes no tensor per tree.
    """
    rows, width, words = shape.batch_rows, shape.width, shape.words
    bits_begin = _NODE_FIELDS * rows * width
    levels_begin = bits_begin + rows * width * words
    packed = np.zeros(levels_begin + 2 * sum(shape.parents), dtype=np.int64)
    fields = packed[:bits_begin].reshape(_NODE_FIELDS, rows, width)
    bits = packed[bits_begin:levels_begin].view(np.uint64).reshape(rows, width, words)
    inner: list[list[tuple[int, int]]] = [[] for _ in range(shape.depth)]
    for row, topology in enumerate(topologies):
        # The internal nodes of the batch rows are concatenated: a row's begin where those of the rows before it end.
        index_in_level = {
            node: len(inner[at]) + own
            for at, level in enumerate(topology.internal_nodes)
            for own, node in enumerate(level)
        }
        ranks, depths = [path[-1] for path in topology.paths], [len(path) for path in topology.paths]
        parent_index = [index_in_level[parent] for parent in topology.parents[1:]]
        fields[0, row, : topology.nodes + 1] = topology.parents
        fields[1:4, row, 1 : topology.nodes + 1] = depths, ranks, parent_index
        fields[4, row, : topology.nodes + 1] = 1
        for word in range(words):
            own = [number >> word * _WORD_BITS & _WORD_MASK for number in topology.ancestor_bits]
            bits[row, : topology.nodes + 1, word] = np.array(own, dtype=np.uint64)
        for at, level in enumerate(topology.internal_nodes):
            inner[at] += [(row, node) for node in level]
    padded = [level + level[-1:] * (count - len(level)) for level, count in zip(inner, shape.parents, strict=True)]
    packed[levels_begin:] = [number for level in padded for pair in zip(*level, strict=True) for number in pair]
    return packed
