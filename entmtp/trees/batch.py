"""One topology per request, as what one step needs: sizes, and all numbers in two tensors.

On a GPU the parts of a step are CUDA graphs, which fix the kernels and their sizes but not the numbers. So the two are
kept apart: :class:`TreeShape` is all that kernels may depend on, :attr:`TreeBatch.nodes` and :attr:`TreeBatch.levels`
are everything else, one copy to the device. Any batch of trees replays the graphs of its shape, and shapes are rounded
up so that they are few. Only drafting asks for levels, so that verifying depends on rows and width alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from entmtp.trees.topology import Topology

_NODE_FIELDS = 5
_ROUNDED_RANKS = 16
"""Up to here, asking a GPU for more of the best guesses costs next to nothing."""


@dataclass(frozen=True)
class TreeShape:
    """Padded sizes of a batch of trees.

    Attributes:
        requests: batch rows, idle ones included.
        width: nodes of each row, the root included.
        parents: per depth 0, 1, ... nodes that have children, over the whole batch.
        ranks: per depth 0, 1, ... how many of the best guesses their children need.
        padded: whether a row may have fewer nodes than ``width``.
    """

    requests: int
    width: int
    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    padded: bool

    @classmethod
    def of(cls, topologies: Sequence[Topology]) -> TreeShape:
        """The least sizes that hold ``topologies``."""
        depth = max(topology.max_depth for topology in topologies)
        deep = [[topology for topology in topologies if topology.max_depth > level] for level in range(depth)]
        return cls(
            requests=len(topologies),
            width=1 + max(topology.nodes for topology in topologies),
            parents=tuple(
                sum(len(topology.internal_nodes[level]) for topology in deep[level]) for level in range(depth)
            ),
            ranks=tuple(1 + max(topology.max_rank[level] for topology in deep[level]) for level in range(depth)),
            padded=len({topology.nodes for topology in topologies}) > 1,
        )

    def rounded(self, rows: int) -> TreeShape:
        """Sizes that follow from ``rows``, the next power of two of the width, the depth and little else."""
        width, depth = _power_of_two(self.width), self.depth
        # At depth 1 and below, a node with children is one of at most (width - 1) / 2: each has a child of its own.
        parents = [rows * (width // 2 if level else 1) for level in range(depth)]
        ranks = _power_of_two(max((_ROUNDED_RANKS, *self.ranks)))
        return TreeShape(rows, width, tuple(parents), (ranks,) * depth, padded=True)

    @property
    def depth(self) -> int:
        """Depth of the deepest tree."""
        return len(self.parents)


def rounded_rows(requests: int) -> int:
    """Batch rows of a captured step: a power of two, or a multiple of eight."""
    return _power_of_two(requests) if requests <= 8 else -(-requests // 8) * 8


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class TreeBatch:
    """Padded trees of a step.

    Attributes:
        topologies: one per request, in batch order; rows behind theirs are idle, all padding.
        shape: the padded sizes.
        nodes: int64, of the tensors below those of a row's nodes, one behind the other; on the device.
        levels: int64, all that :meth:`internal_nodes` returns, likewise.
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
        """Pads ``topologies`` to a common shape: a ``rounded`` one (by default on GPUs), or else the least.

        A rounded one may have more ``rows`` than trees. A batch that came before is the same object again, with its
        tensors already on the device.
        """
        target = torch.device(device)
        rounded = target.type == "cuda" if rounded is None else rounded
        return _batch(tuple(topologies), target, (rows or len(topologies)) if rounded else None)

    def uncached_copy(self) -> TreeBatch:
        """The same numbers, with nothing derived from them yet."""
        return TreeBatch(self.topologies, self.shape, self.nodes, self.levels)

    @property
    def width(self) -> int:
        """Padded node count, root included."""
        return self.shape.width

    @property
    def max_depth(self) -> int:
        """Depth of the deepest tree of the batch."""
        return self.shape.depth

    @cached_property
    def _fields(self) -> torch.Tensor:
        shape = self.shape
        count = _NODE_FIELDS * shape.requests * shape.width
        return self.nodes[:count].view(_NODE_FIELDS, shape.requests, shape.width)

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
    def ancestors(self) -> torch.Tensor:
        """``[batch, width, width]`` bool: ``[b, i, j]`` where j is i or an ancestor of i; False on padding."""
        rows, width = self.shape.requests, self.shape.width
        return self.nodes[self._fields.numel() :].view(rows, width, width).bool()

    def internal_nodes(self, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch rows and nodes ``[shape.parents[level]]`` of those that have children at depth ``level``.

        Padding repeats the last of them.
        """
        begin, count = 2 * sum(self.shape.parents[:level]), self.shape.parents[level]
        request, node = self.levels[begin : begin + 2 * count].view(2, count)
        return request, node


@lru_cache(maxsize=256)
def _batch(topologies: tuple[Topology, ...], device: torch.device, rounded_rows: int | None) -> TreeBatch:
    shape = TreeShape.of(topologies)
    shape = shape if rounded_rows is None else shape.rounded(rounded_rows)
    packed = torch.from_numpy(_numbers(topologies, shape))
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    levels = 2 * sum(shape.parents)
    return TreeBatch(topologies, shape, *packed.split([len(packed) - levels, levels]))


def _numbers(topologies: Sequence[Topology], shape: TreeShape) -> np.ndarray:
    """Nodes, then levels, on the host. On the path of every step, so no tensor is made of a single tree."""
    node_count, width = shape.requests * shape.width, shape.width
    mask_begin = _NODE_FIELDS * node_count
    levels_begin = mask_begin + node_count * width
    packed = np.zeros(levels_begin + 2 * sum(shape.parents), dtype=np.int64)
    fields = packed[:mask_begin].reshape(_NODE_FIELDS, shape.requests, width)
    looks_at: list[int] = []
    inner: list[list[tuple[int, int]]] = [[] for _ in range(shape.depth)]
    for row, topology in enumerate(topologies):
        # The rows' inner nodes follow one another, so a row's begin where those before it end.
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
        for node, lineage in enumerate(topology.lineages):
            begin = mask_begin + (row * width + node) * width
            looks_at += [begin + ancestor for ancestor in lineage]
        for at, level in enumerate(topology.internal_nodes):
            inner[at] += [(row, node) for node in level]
    packed[looks_at] = 1
    padded = [level + level[-1:] * (count - len(level)) for level, count in zip(inner, shape.parents, strict=True)]
    packed[levels_begin:] = [number for level in padded for pair in zip(*level, strict=True) for number in pair]
    return packed
