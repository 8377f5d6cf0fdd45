"""The key/value cache of tree decoding: preallocated slots, the tree rows of a step, accepted paths compacted in place.

Each slot holds one request. Cache row 0 is the trash row, which padded nodes write to and attend to. The token at
position p is stored in row p + 1. A step writes its nodes after the committed rows, in node order. Then
:meth:`TreeCache.commit` moves the rows of the accepted path together. All buffers are allocated at
construction and never move; on a CPU their pages take memory as texts fill them.

The lengths of the slots exist twice. A step reads and advances the device copy without waiting for the host. The host
copy follows when the outcome of the step arrives (:meth:`TreeCache.sync_lengths`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from entmtp.errors import EntMTPError
from entmtp.models.lazy_zeros import lazy_zeros

ROUNDED_ROWS = 256
"""Captured graphs read a multiple of this many cache rows, so that a context grows that far before the next capture.

From eight times as many rows on, the unit is an eighth to a quarter of the context's own length.
"""


@dataclass(frozen=True)
class BufferShape:
    """Shape of a layer's keys or values: heads, entries per head, type, and device unless it is the cache's."""

    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None

    @classmethod
    def of(cls, states: torch.Tensor) -> BufferShape:
        """The shape that stores states ``[batch, heads, n, head_dim]``."""
        return cls(states.shape[1], states.shape[3], states.dtype, states.device)

    def on(self, device: torch.device) -> BufferShape:
        """The same shape on ``device``, unless it has a device already."""
        return replace(self, device=self.device or device)


LayerShape = tuple[BufferShape, BufferShape]
"""Shapes of a layer's keys and of its values."""


@dataclass(frozen=True)
class DraftCacheLayout:
    """Buffers that draft heads store per token, in the same rows as the model's keys and values.

    They move with the model's rows when a path is committed.

    Attributes:
        layers: shapes of the keys and values of the heads' own attention layers.
        state_buffers: shapes of other buffers, such as hidden states that are needed again.
        spare_rows: rows that drafting may need in addition to those of a step's tree.
    """

    layers: tuple[LayerShape, ...] = ()
    state_buffers: tuple[BufferShape, ...] = ()
    spare_rows: int = 0


NO_DRAFT_CACHE = DraftCacheLayout()
"""Layout of heads that draft from a hidden state alone."""


@dataclass(frozen=True)
class KvRange:
    """Slots and cache rows that one pass attends to. A captured graph fixes them.

    Attributes:
        slots: one slot per batch row.
        first, last: the half-open range of cache rows that attention reads.
    """

    slots: tuple[int, ...]
    first: int
    last: int

    @property
    def contiguous(self) -> bool:
        """Whether the slots are consecutive, so that a tensor view reads them without a copy."""
        return self.slots == tuple(range(self.slots[0], self.slots[0] + len(self.slots)))


@dataclass(frozen=True)
class SlotMapping:
    """Cache rows that one pass writes.

    Attributes:
        kv_range: the rows that it reads.
        slots: its slots ``[batch]``, for indexing.
        start: committed tokens of each slot ``[batch]``.
        cache_rows: cache row of each node ``[batch, n]``; 0 on padding.
    """

    kv_range: KvRange
    slots: torch.Tensor
    start: torch.Tensor
    cache_rows: torch.Tensor


MoveRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Moves accepted rows together, as :func:`move_rows` does."""


def move_rows(pool: torch.Tensor, slots: torch.Tensor, start: torch.Tensor, nodes: torch.Tensor) -> None:
    """Move node ``nodes[request, i]`` of each request's last pass to row ``start + 1 + i`` of its slot.

    Args:
        pool: buffers ``[blocks, slots, heads, capacity + 1, head_dim]``, changed in place.
        slots, start: ``[batch]`` slot of each request, and the tokens before the pass.
        nodes: ``[batch, count]``, ascending, whose rows lie after those tokens.
    """
    first = start[:, None] + 1
    target = first + torch.arange(nodes.shape[1], device=nodes.device)
    slot, to_rows, from_rows = (rows.to(pool.device) for rows in (slots[:, None], target, first + nodes))
    pool[:, slot, :, to_rows] = pool[:, slot, :, from_rows]


class SlotTable:
    """State that the layers of a cache share: the lengths of the slots and the slot mapping of the running pass.

    It is a separate object, so that layers and cache do not refer to each other. The memory of a cache that is no
    longer used is then free at once, not at some later garbage collection.
    """

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.device = device
        self.lengths = [0] * slots
        self.device_lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}
        kv_range = KvRange((0,), 0, 1)
        no_rows = self.device_lengths.new_zeros(1, 0)
        self.slot_mapping = SlotMapping(kv_range, self.index(kv_range.slots), self.device_lengths[:1], no_rows)

    def index(self, slots: tuple[int, ...]) -> torch.Tensor:
        """Slots as a tensor ``[batch]``, cached: a graph can't be captured while the host sends numbers."""
        if slots not in self._indices:
            self._indices[slots] = torch.tensor(slots, device=self.device)
        return self._indices[slots]


class TreeLayer:
    """Keys and values of one layer ``[slots, kv_heads, capacity + 1, head_dim]``, views of the cache's pools."""

    def __init__(self, table: SlotTable, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.table = table
        self.keys = keys
        self.values = values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[batch, kv_heads, n, head_dim]`` to the mapped rows; return all rows that attention reads."""
        return self._write_read(self.keys, key_states), self._write_read(self.values, value_states)

    def _write_read(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        mapping = self.table.slot_mapping
        kv_range = mapping.kv_range
        slots, rows = mapping.slots.to(buffer.device), mapping.cache_rows.to(buffer.device)
        if len(kv_range.slots) == 1:
            buffer[kv_range.slots[0]].index_copy_(1, rows[0], states[0])
        else:
            buffer[slots[:, None], :, rows] = states.transpose(1, 2)
        if kv_range.contiguous:
            return buffer[kv_range.slots[0] : kv_range.slots[-1] + 1, :, kv_range.first : kv_range.last]
        return buffer[slots, :, kv_range.first : kv_range.last]


class TreeCache:
    """A cache of ``slots`` requests with ``capacity`` rows each: committed tokens and the tree of the running step."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        slots: int,
        capacity: int,
        device: torch.device | str = "cpu",
        state_buffers: Sequence[BufferShape] = (),
        move: MoveRows = move_rows,
        any_length_width: int = 0,
    ) -> None:
        """Allocate all buffers.

        ``state_buffers`` are ``[slots, heads, capacity + 1, head_dim]``, for what is neither keys nor values. ``move``
        moves the rows of accepted paths. Passes of up to ``any_length_width`` nodes read the lengths on the device, so
        that their rounded KV range is always the whole slot.
        """
        self._move = move
        self._any_length_width = any_length_width
        self.table = SlotTable(slots, capacity, torch.device(device))
        # One block of memory for all buffers of a shape, so that a path moves in all of them at once.
        shapes = [(keys.on(self.table.device), values.on(self.table.device)) for keys, values in shapes]
        state_buffers = [shape.on(self.table.device) for shape in state_buffers]
        flat = [*(shape for layer in shapes for shape in layer), *state_buffers]
        # Zeros, not empty: a NaN in a masked row would leak through 0 * NaN.
        self.pools = {
            shape: lazy_zeros(
                (flat.count(shape), slots, shape.heads, capacity + 1, shape.head_dim), shape.dtype, shape.device
            )
            for shape in dict.fromkeys(flat)
        }
        free = {shape: iter(pool) for shape, pool in self.pools.items()}
        self.tree_layers = [TreeLayer(self.table, next(free[keys]), next(free[values])) for keys, values in shapes]
        self.state_buffers = [next(free[shape]) for shape in state_buffers]

    @property
    def capacity(self) -> int:
        """Rows of each slot."""
        return self.table.capacity

    @property
    def lengths(self) -> list[int]:
        """Committed tokens of each slot, as far as the host knows."""
        return self.table.lengths

    @property
    def slot_mapping(self) -> SlotMapping:
        """Rows that the running pass writes and reads."""
        return self.table.slot_mapping

    @property
    def bytes(self) -> int:
        """Memory of all buffers."""
        return sum(pool.nbytes for pool in self.pools.values())

    def kv_range(
        self, slots: Sequence[int], width: int, *, padded: bool, rounded: bool = False, idle: Sequence[int] = ()
    ) -> KvRange:
        """The KV range of a pass over ``width`` nodes for each of ``slots``.

        Args:
            slots: the slots of the batch rows.
            width: nodes of each batch row.
            padded: whether some batch rows have fewer nodes.
            rounded: read more rows than needed, hidden by the mask, so that many steps share a range.
            idle: slots of further batch rows that are all padding. Their contents don't matter.

        Raises:
            EntMTPError: if a slot has too few rows.
        """
        lengths = {self.lengths[slot] for slot in slots}
        last = max(lengths) + width + 1
        if last > self.capacity + 1:
            raise EntMTPError(
                f"cache: {max(lengths)} tokens and a step of {width} nodes do not fit its {self.capacity} rows;"
                " allow a longer context or ask for fewer tokens"
            )
        if rounded and width <= self._any_length_width:
            return KvRange((*slots, *idle), 0, self.capacity + 1)
        if rounded:
            unit = max(ROUNDED_ROWS, 1 << max(0, last.bit_length() - 3))
            return KvRange((*slots, *idle), 0, min(self.capacity + 1, -(-last // unit) * unit))
        return KvRange(tuple(slots), 0 if padded or len(lengths) > 1 else 1, last)

    def map_slots(self, kv_range: KvRange, real: torch.Tensor, start: torch.Tensor | None = None) -> SlotMapping:
        """Map the nodes ``real [batch, n]`` (False on padding) of the next pass to cache rows.

        Nodes are written after the first ``start [batch]`` tokens: by default after the committed ones. An idle batch
        row then starts at 0, because the contents of its slot need not fit the range.
        """
        index = self.table.index(kv_range.slots)
        if start is None:
            start = self.table.device_lengths[index] * real[:, 0]
        rows = start[:, None] + torch.arange(1, real.shape[1] + 1, device=real.device)
        if kv_range.first == 0:
            rows = rows.masked_fill(~real, 0)
        self.table.slot_mapping = SlotMapping(kv_range, index, start, rows)
        return self.table.slot_mapping

    @torch.inference_mode()
    def commit(self, slots: tuple[int, ...], nodes: torch.Tensor, counts: torch.Tensor) -> None:
        """Commit the first ``counts [batch]`` of ``nodes [batch, k]``, which the last pass wrote.

        Nodes ascend, node 0 first. Their rows move so that the committed tokens of each slot stay contiguous, and all
        rows after them are free. Entries of ``nodes`` beyond the count are moved too and mean nothing. Idle batch rows
        have count 0 and nodes 0, 1, ..., so that their rows stay in place. Lengths change on the device only:
        :meth:`sync_lengths` updates the host.
        """
        index = self.table.index(slots)
        if nodes.shape[1] > 1:  # a root alone is in its row already
            start = self.table.device_lengths[index] * (counts > 0)
            for pool in self.pools.values():
                self._move(pool, index, start, nodes)
        self.table.device_lengths.index_add_(0, index, counts)

    def sync_lengths(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Add the number of nodes that :meth:`commit` committed in each of ``slots`` to the host's lengths."""
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count

    @torch.inference_mode()
    def append(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Commit the first ``counts`` nodes of the last pass in each of ``slots``: a chain, so that no row moves."""
        self.sync_lengths(slots, counts)
        for slot, count in zip(slots, counts, strict=True):
            self.table.device_lengths[slot] += count

    @torch.inference_mode()
    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Replace the contents of ``target`` by the first ``length`` tokens of ``source``, which stays as it is."""
        for pool in self.pools.values():
            pool[:, target, :, 1 : length + 1] = pool[:, source, :, 1 : length + 1]
        self.truncate(target, length)

    @torch.inference_mode()
    def swap(self, one: int, other: int) -> None:
        """Exchange the contents of two slots, with the root's entry that some heads store after the committed rows.

        All memory that this needs is allocated before any row moves.
        """
        rows = slice(1, 2 + max(self.lengths[one], self.lengths[other]))
        saved = [pool[:, one, :, rows].clone() for pool in self.pools.values()]
        for pool, contents in zip(self.pools.values(), saved, strict=True):
            pool[:, one, :, rows] = pool[:, other, :, rows]
            pool[:, other, :, rows] = contents
        length = self.lengths[one]
        self.truncate(one, self.lengths[other])
        self.truncate(other, length)

    @torch.inference_mode()
    def truncate(self, slot: int, length: int = 0) -> None:
        """Set the number of committed tokens of a slot; rows after them are free, and no memory is released."""
        self.lengths[slot] = length
        self.table.device_lengths[slot] = length

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Empty a slot and set its rows to zero: a NaN in a masked row would leak through 0 * NaN."""
        for pool in self.pools.values():
            pool[:, slot].zero_()
        self.truncate(slot)

    @torch.inference_mode()
    def zero_free_rows(self, slot: int) -> None:
        """Set the rows of a slot to zero, except for the committed ones and the root's entry after them."""
        free = self.lengths[slot] + 2
        for pool in self.pools.values():
            pool[:, slot, :, :1].zero_()
            pool[:, slot, :, free:].zero_()

    def reset_device_lengths(self) -> None:
        """Set the device's lengths to the host's, after a step that failed before the host was updated."""
        self.table.device_lengths.copy_(torch.tensor(self.lengths))
