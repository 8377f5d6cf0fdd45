"""The key/value cache of tree decoding: preallocated slots, a step's tree rows, accepted paths compacted in place.

Each slot holds one request. Buffer row 0 is a trash row that padded nodes write to and look at; the token at position
p lies in row p + 1. A step writes its nodes behind the committed rows, in node order; :meth:`TreeCache.commit` then
moves the rows of the accepted path together. Buffer addresses never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from entmtp.errors import EntMTPError


@dataclass
class StepPlan:
    """Where one forward pass writes and what it reads.

    Attributes:
        slots: one slot per batch row.
        rows: buffer rows ``[batch, n]`` that the pass writes, 0 on padding.
        first, last: the half-open range of buffer rows that attention reads.
    """

    slots: tuple[int, ...]
    rows: torch.Tensor
    first: int
    last: int

    @property
    def contiguous(self) -> bool:
        """Whether the slots follow one another, so that reading them is a view."""
        return self.slots == tuple(range(self.slots[0], self.slots[0] + len(self.slots)))


class SlotTable:
    """What a cache's layers have in common: the slots' lengths and the running step's plan.

    An object of its own, so that layers and cache do not refer to each other: memory of a cache that is no longer used
    is free at once, not at some later garbage collection.
    """

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        self.slots = slots
        self.capacity = capacity
        self.device = device
        self.lengths = [0] * slots
        self.plan = StepPlan((0,), torch.zeros(1, 0, dtype=torch.int64), 0, 1)

    def slot_index(self) -> torch.Tensor:
        """The plan's slots as an index tensor ``[batch]``."""
        return torch.tensor(self.plan.slots, device=self.device)


class TreeLayer(CacheLayerMixin):
    """Keys and values of one layer ``[slots, kv_heads, capacity + 1, head_dim]``."""

    is_sliding = False

    def __init__(self, table: SlotTable) -> None:
        super().__init__()
        self.table = table

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.is_initialized = True

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, head_dim = states.shape
        # Zeros, not empty: a NaN in a masked row would leak through 0 * NaN.
        return states.new_zeros(self.table.slots, heads, self.table.capacity + 1, head_dim)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes ``[batch, kv_heads, n, head_dim]`` at the plan's rows; returns all rows that attention may read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self._write_read(self.keys, key_states), self._write_read(self.values, value_states)

    def _write_read(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        plan = self.table.plan
        if len(plan.slots) == 1:
            slot = plan.slots[0]
            buffer[slot].index_copy_(1, plan.rows[0], states[0])
        else:
            buffer[self.table.slot_index()[:, None], :, plan.rows] = states.transpose(1, 2)
        if plan.contiguous:
            return buffer[plan.slots[0] : plan.slots[-1] + 1, :, plan.first : plan.last]
        return buffer[self.table.slot_index(), :, plan.first : plan.last]

    @torch.inference_mode()
    def move(self, slots: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies buffer rows ``source [batch, k]`` to ``target [batch, k]`` of each slot."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[slots[:, None], :, target] = buffer[slots[:, None], :, source]

    def get_seq_length(self) -> int:
        return max(self.table.lengths[slot] for slot in self.table.plan.slots)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.table.plan.last - self.table.plan.first, 0

    def get_max_length(self) -> int:
        return self.table.capacity


class TreeCache(Cache):
    """``slots`` requests of up to ``capacity`` rows (committed tokens and the tree of the running step) each."""

    def __init__(self, layers: int, slots: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.table = SlotTable(slots, capacity, torch.device(device))
        self.tree_layers = [TreeLayer(self.table) for _ in range(layers)]
        super().__init__(layers=list(self.tree_layers))

    @property
    def capacity(self) -> int:
        """Rows that each slot has room for."""
        return self.table.capacity

    @property
    def lengths(self) -> list[int]:
        """Committed tokens of each slot."""
        return self.table.lengths

    @property
    def plan(self) -> StepPlan:
        """Where the running pass writes and what it reads."""
        return self.table.plan

    def begin(self, slots: Sequence[int], real: torch.Tensor) -> StepPlan:
        """Plans a pass that writes ``real [batch, n]`` (False on padding) nodes behind the committed rows.

        Raises:
            EntMTPError: if a slot has too little room.
        """
        width = real.shape[1]
        longest = max(self.lengths[slot] for slot in slots)
        if longest + width > self.capacity:
            raise EntMTPError(
                f"cache: {longest} tokens and a step of {width} nodes do not fit its {self.capacity} rows;"
                " allow a longer context or ask for fewer tokens"
            )
        start = torch.tensor([self.lengths[slot] for slot in slots], device=self.table.device)
        rows = start[:, None] + 1 + torch.arange(width, device=self.table.device)
        padded = not bool(real.all())
        if padded:
            rows = rows.masked_fill(~real, 0)
        ragged = len({self.lengths[slot] for slot in slots}) > 1
        self.table.plan = StepPlan(tuple(slots), rows, 0 if padded or ragged else 1, longest + width + 1)
        return self.plan

    def commit(self, accepted: Sequence[Sequence[int]]) -> None:
        """Keeps, per batch row of the running plan, the nodes ``accepted`` (ascending, from the step's first node).

        Rows are moved so that each slot's committed tokens stay contiguous; everything behind them is forgotten.
        """
        moves = [(row, list(nodes)) for row, nodes in enumerate(accepted) if list(nodes) != list(range(len(nodes)))]
        if moves:
            self._move(moves)
        for slot, nodes in zip(self.plan.slots, accepted, strict=True):
            self.lengths[slot] += len(nodes)

    def _move(self, moves: list[tuple[int, list[int]]]) -> None:
        width = max(len(nodes) for _, nodes in moves)
        source = torch.zeros(len(moves), width, dtype=torch.int64)
        target = torch.zeros(len(moves), width, dtype=torch.int64)
        for number, (row, nodes) in enumerate(moves):
            start = self.lengths[self.plan.slots[row]] + 1
            source[number, : len(nodes)] = torch.tensor(nodes) + start
            target[number, : len(nodes)] = torch.arange(len(nodes)) + start
        slots = torch.tensor([self.plan.slots[row] for row, _ in moves], device=self.table.device)
        source, target = source.to(self.table.device), target.to(self.table.device)
        for layer in self.tree_layers:
            layer.move(slots, source, target)

    def release(self, slot: int) -> None:
        """Forgets a slot's tokens; the memory stays."""
        self.lengths[slot] = 0
