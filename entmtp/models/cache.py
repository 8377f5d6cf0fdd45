"""The key/value cache of tree decoding: preallocated slots, a step's tree rows, accepted paths compacted in place.

Each slot holds one request. Buffer row 0 is a trash row that padded nodes write to and look at; the token at position
p lies in row p + 1. A step writes its nodes behind the committed rows, in node order; :meth:`TreeCache.keep` then moves
the rows of the accepted path together. All memory is allocated at construction and never moves.

The slots' lengths exist twice: on the device, where a step reads and advances them without the host, and on the host,
which learns of them when a step's outcome arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from entmtp.errors import EntMTPError

ROUNDED_ROWS = 256
"""Captured graphs read this many buffer rows or a multiple: a context grows that far before the next capture.

Behind eight times as many, that is an eighth to a quarter of its own length.
"""


@dataclass(frozen=True)
class BufferShape:
    """Of a layer's keys or values: heads, entries per head, their type, and where they lie if not with all else."""

    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None

    @classmethod
    def of(cls, states: torch.Tensor) -> BufferShape:
        """The shape that holds states ``[batch, heads, n, head_dim]``."""
        return cls(states.shape[1], states.shape[3], states.dtype, states.device)

    def on(self, device: torch.device) -> BufferShape:
        """On ``device``, if it lies nowhere yet."""
        return replace(self, device=self.device or device)


LayerShape = tuple[BufferShape, BufferShape]
"""Of a layer's keys and of its values."""


@dataclass(frozen=True)
class HeadsRows:
    """What draft heads keep of each token, in the rows of the model's own keys and values, which it moves with.

    Attributes:
        layers: of their own attention layers.
        notes: of anything else, such as states that are needed again.
        spare: rows beyond those of a step's tree that guessing it may need.
    """

    layers: tuple[LayerShape, ...] = ()
    notes: tuple[BufferShape, ...] = ()
    spare: int = 0


NO_ROWS = HeadsRows()
"""Heads that guess from a state alone."""


@dataclass(frozen=True)
class Span:
    """What one pass reads and writes, as far as it is fixed in a captured graph.

    Attributes:
        slots: one slot per batch row.
        first, last: the half-open range of buffer rows that attention reads.
    """

    slots: tuple[int, ...]
    first: int
    last: int

    @property
    def contiguous(self) -> bool:
        """Whether the slots follow one another, so that reading them is a view."""
        return self.slots == tuple(range(self.slots[0], self.slots[0] + len(self.slots)))


@dataclass(frozen=True)
class StepPlan:
    """One pass.

    Attributes:
        span: what it reads.
        slots: its slots ``[batch]``, for indexing.
        start: committed tokens of each ``[batch]``.
        rows: buffer rows ``[batch, n]`` that it writes, 0 on padding.
    """

    span: Span
    slots: torch.Tensor
    start: torch.Tensor
    rows: torch.Tensor


class SlotTable:
    """What a cache's layers have in common: the slots' lengths and the running pass's plan.

    An object of its own, so that layers and cache do not refer to each other: memory of a cache that is no longer used
    is free at once, not at some later garbage collection.
    """

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.device = device
        self.lengths = [0] * slots
        self.device_lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}
        span = Span((0,), 0, 1)
        self.plan = StepPlan(span, self.index(span.slots), self.device_lengths[:1], self.device_lengths.new_zeros(1, 0))

    def index(self, slots: tuple[int, ...]) -> torch.Tensor:
        """Slots as a tensor ``[batch]``; made once, since a graph can't be captured while the host sends numbers."""
        if slots not in self._indices:
            self._indices[slots] = torch.tensor(slots, device=self.device)
        return self._indices[slots]


class TreeLayer(CacheLayerMixin):
    """Keys and values of one layer ``[slots, kv_heads, capacity + 1, head_dim]``, views of the cache's pools."""

    is_sliding = False

    def __init__(self, table: SlotTable, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.keys = keys
        self.values = values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is lazy here."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes ``[batch, kv_heads, n, head_dim]`` at the plan's rows; returns all rows that attention may read."""
        assert self.keys is not None
        assert self.values is not None
        return self._write_read(self.keys, key_states), self._write_read(self.values, value_states)

    def _write_read(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        plan = self.table.plan
        span = plan.span
        slots, rows = plan.slots.to(buffer.device), plan.rows.to(buffer.device)
        if len(span.slots) == 1:
            buffer[span.slots[0]].index_copy_(1, rows[0], states[0])
        else:
            buffer[slots[:, None], :, rows] = states.transpose(1, 2)
        if span.contiguous:
            return buffer[span.slots[0] : span.slots[-1] + 1, :, span.first : span.last]
        return buffer[slots, :, span.first : span.last]

    def get_seq_length(self) -> int:
        return max(self.table.lengths[slot] for slot in self.table.plan.span.slots)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.table.plan.span.last - self.table.plan.span.first, 0

    def get_max_length(self) -> int:
        return self.table.capacity


class TreeCache(Cache):
    """``slots`` requests of up to ``capacity`` rows (committed tokens and the tree of the running step) each."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        slots: int,
        capacity: int,
        device: torch.device | str = "cpu",
        notes: Sequence[BufferShape] = (),
    ) -> None:
        """``notes`` are buffers ``[slots, heads, capacity + 1, head_dim]`` that are nobody's keys or values."""
        self.table = SlotTable(slots, capacity, torch.device(device))
        # One block of memory for all buffers of a shape, so that a path moves in all of them at once.
        shapes = [(keys.on(self.table.device), values.on(self.table.device)) for keys, values in shapes]
        notes = [shape.on(self.table.device) for shape in notes]
        flat = [*(shape for layer in shapes for shape in layer), *notes]
        # Zeros, not empty: a NaN in a masked row would leak through 0 * NaN.
        self.pools = {
            shape: torch.zeros(
                (flat.count(shape), slots, shape.heads, capacity + 1, shape.head_dim),
                dtype=shape.dtype,
                device=shape.device,
            )
            for shape in dict.fromkeys(flat)
        }
        free = {shape: iter(pool) for shape, pool in self.pools.items()}
        self.tree_layers = [TreeLayer(self.table, next(free[keys]), next(free[values])) for keys, values in shapes]
        self.notes = [next(free[shape]) for shape in notes]
        super().__init__(layers=list(self.tree_layers))

    @property
    def capacity(self) -> int:
        """Rows that each slot has room for."""
        return self.table.capacity

    @property
    def lengths(self) -> list[int]:
        """Committed tokens of each slot, as far as the host knows."""
        return self.table.lengths

    @property
    def plan(self) -> StepPlan:
        """Where the running pass writes and what it reads."""
        return self.table.plan

    @property
    def bytes(self) -> int:
        """Memory of all buffers."""
        return sum(pool.nbytes for pool in self.pools.values())

    def span(
        self, slots: Sequence[int], width: int, *, padded: bool, rounded: bool = False, idle: Sequence[int] = ()
    ) -> Span:
        """The span of a pass over ``width`` nodes for each of ``slots``; ``padded`` if some have fewer.

        A ``rounded`` one reads more rows than needed, hidden by the mask, so that many steps have the same. ``idle``
        slots, whose text is of no account, stand in batch rows behind the others that are all padding.

        Raises:
            EntMTPError: if a slot has too little room.
        """
        lengths = {self.lengths[slot] for slot in slots}
        last = max(lengths) + width + 1
        if last > self.capacity + 1:
            raise EntMTPError(
                f"cache: {max(lengths)} tokens and a step of {width} nodes do not fit its {self.capacity} rows;"
                " allow a longer context or ask for fewer tokens"
            )
        if rounded:
            unit = max(ROUNDED_ROWS, 1 << max(0, last.bit_length() - 3))
            return Span((*slots, *idle), 0, min(self.capacity + 1, -(-last // unit) * unit))
        return Span(tuple(slots), 0 if padded or len(lengths) > 1 else 1, last)

    def begin(self, span: Span, real: torch.Tensor) -> StepPlan:
        """Plans a pass that writes ``real [batch, n]`` (False on padding) nodes behind the committed rows.

        Idle rows stand at the beginning, whatever lies in their slots: it need not fit the span.
        """
        return self.place(span, real, self.table.device_lengths[self.table.index(span.slots)] * real[:, 0])

    def place(self, span: Span, real: torch.Tensor, start: torch.Tensor) -> StepPlan:
        """Plans a pass as :meth:`begin` does, that writes behind the first ``start [batch]`` rows."""
        rows = start[:, None] + torch.arange(1, real.shape[1] + 1, device=real.device)
        if span.first == 0:
            rows = rows.masked_fill(~real, 0)
        self.table.plan = StepPlan(span, self.table.index(span.slots), start, rows)
        return self.table.plan

    @torch.inference_mode()
    def keep(self, slots: tuple[int, ...], nodes: torch.Tensor, counts: torch.Tensor) -> None:
        """Keeps the first ``counts [batch]`` of the nodes ``[batch, k]`` that the last pass wrote, node 0 first.

        Of idle rows there are none, and their nodes are 0, 1, ..., whose rows stay where they are.
        They ascend and are moved so that each slot's committed tokens stay contiguous; everything behind them is
        forgotten. What ``nodes`` names behind its count is moved too and means nothing. On the device only:
        :meth:`learn` tells the host.
        """
        index = self.table.index(slots)
        first = (self.table.device_lengths[index] * (counts > 0))[:, None] + 1
        source, target = first + nodes, first + torch.arange(nodes.shape[1], device=nodes.device)
        if nodes.shape[1] > 1:  # a root alone lies where it belongs
            for pool in self.pools.values():
                slot, to, of = (place.to(pool.device) for place in (index[:, None], target, source))
                pool[:, slot, :, to] = pool[:, slot, :, of]
        self.table.device_lengths.index_add_(0, index, counts)

    def learn(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Tells the host how many nodes :meth:`keep` kept in each of ``slots``."""
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count

    @torch.inference_mode()
    def append(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Keeps the first ``counts`` nodes of the last pass in each of ``slots``: a chain, nothing moves."""
        self.learn(slots, counts)
        for slot, count in zip(slots, counts, strict=True):
            self.table.device_lengths[slot] += count

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Begins ``target`` with the first ``length`` tokens of ``source``, whose own stay."""
        for pool in self.pools.values():
            pool[:, target, :, 1 : length + 1] = pool[:, source, :, 1 : length + 1]
        self.rewind(target, length)

    @torch.inference_mode()
    def swap(self, one: int, other: int) -> None:
        """Exchanges the texts of two slots, with the entry of the root that some heads have behind them.

        All memory that it needs is taken before anything moves.
        """
        rows = slice(1, 2 + max(self.lengths[one], self.lengths[other]))
        first = [pool[:, one, :, rows].clone() for pool in self.pools.values()]
        for pool, kept in zip(self.pools.values(), first, strict=True):
            pool[:, one, :, rows] = pool[:, other, :, rows]
            pool[:, other, :, rows] = kept
        length = self.lengths[one]
        self.rewind(one, self.lengths[other])
        self.rewind(other, length)

    @torch.inference_mode()
    def rewind(self, slot: int, length: int = 0) -> None:
        """Forgets a slot's tokens behind the first ``length``; the memory stays."""
        self.lengths[slot] = length
        self.table.device_lengths[slot] = length

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Empties a slot and its rows: in a row that a mask hides, a NaN would leak through 0 * NaN."""
        for pool in self.pools.values():
            pool[:, slot].zero_()
        self.rewind(slot)

    @torch.inference_mode()
    def scrub(self, slot: int) -> None:
        """Empties the rows that hold no committed token, nor the root's entry of some heads, which follows them."""
        free = self.lengths[slot] + 2
        for pool in self.pools.values():
            pool[:, slot, :, :1].zero_()
            pool[:, slot, :, free:].zero_()

    def restore_lengths(self) -> None:
        """Forgets on the device what the host has not learnt: a step that did not come to its end."""
        self.table.device_lengths.copy_(torch.tensor(self.lengths))
