"""One topology per request, padded to a common node count, as the tensors that one forward pass needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from entmtp.trees.topology import Topology


@dataclass(frozen=True)
class Expansion:
    """The nodes of one depth that have children, over the whole batch, and where their children go.

    Attributes:
        request, node: ``[parents]`` int64, the batch row and node of each parent.
        child_request, child: ``[children]`` int64, the batch row and node of each child.
        child_of: ``[children]`` int64, the child's parent as an index into ``node``.
        child_rank: ``[children]`` int64.
        ranks: how many of the best guesses are needed.
    """

    request: torch.Tensor
    node: torch.Tensor
    child_request: torch.Tensor
    child: torch.Tensor
    child_of: torch.Tensor
    child_rank: torch.Tensor
    ranks: int


@dataclass(frozen=True)
class TreeBatch:
    """Padded trees of a step; ``width`` is the padded node count with the root.

    Attributes:
        topologies: one per request, in batch order.
        parent, depth, rank: ``[batch, width]`` int64; padding is 0.
        ancestors: ``[batch, width, width]`` bool; a padded row or column is False everywhere.
        real: ``[batch, width]`` bool; False on padding.
    """

    topologies: tuple[Topology, ...]
    parent: torch.Tensor
    depth: torch.Tensor
    rank: torch.Tensor
    ancestors: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of(cls, topologies: Sequence[Topology], device: torch.device | str = "cpu") -> TreeBatch:
        """Pads ``topologies`` to the largest of them."""
        width = 1 + max(topology.nodes for topology in topologies)
        if all(topology is topologies[0] for topology in topologies):
            return cls._uniform(topologies, device)
        rows = len(topologies)
        parent, depth, rank = (torch.zeros(rows, width, dtype=torch.int64) for _ in range(3))
        ancestors = torch.zeros(rows, width, width, dtype=torch.bool)
        real = torch.zeros(rows, width, dtype=torch.bool)
        for row, topology in enumerate(topologies):
            size = topology.nodes + 1
            parent[row, :size], depth[row, :size], rank[row, :size] = topology.parent, topology.depth, topology.rank
            ancestors[row, :size, :size] = topology.ancestors
            real[row, :size] = True
        return cls(tuple(topologies), *(tensor.to(device) for tensor in (parent, depth, rank, ancestors, real)))

    @classmethod
    def _uniform(cls, topologies: Sequence[Topology], device: torch.device | str) -> TreeBatch:
        """The common case of one tree for all: views instead of copies."""
        first, rows = topologies[0], len(topologies)
        real = torch.ones(first.nodes + 1, dtype=torch.bool)
        node_tensors = (first.parent, first.depth, first.rank, first.ancestors, real)
        return cls(tuple(topologies), *(tensor.to(device).expand(rows, *tensor.shape) for tensor in node_tensors))

    @cached_property
    def expansions(self) -> tuple[Expansion, ...]:
        """Per depth 0, 1, ... the nodes to expand: what heads that go level by level need."""
        return tuple(_expansion(self.topologies, depth, self.parent.device) for depth in range(self.max_depth))

    @property
    def width(self) -> int:
        """Padded node count, root included."""
        return self.parent.shape[1]

    @property
    def max_depth(self) -> int:
        """Depth of the deepest tree of the batch."""
        return max(topology.max_depth for topology in self.topologies)


def _expansion(topologies: Sequence[Topology], depth: int, device: torch.device) -> Expansion:
    parents: dict[tuple[int, int], int] = {}
    children: list[tuple[int, int, int, int]] = []
    for row, topology in enumerate(topologies):
        for node, path in enumerate(topology.paths, start=1):
            if len(path) == depth + 1:
                parent = parents.setdefault((row, topology.index[path[:-1]]), len(parents))
                children.append((row, node, parent, path[-1]))
    request, node = torch.tensor(list(parents), device=device).T
    child_request, child, child_of, child_rank = torch.tensor(children, device=device).T
    ranks = 1 + max(rank for *_, rank in children)
    return Expansion(request, node, child_request, child, child_of, child_rank, ranks)
