import gc
import weakref
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.models.cache import BufferShape, MoveRows, SlotMapping, TreeCache, move_rows
from entmtp.models.kernels import compiled, fused_moves
from tests.helpers.tiny_models import buffers, commit

needs_compiler = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
SLOTS, CAPACITY, HEADS, HEAD_DIM = 4, 12, 2, 3


def _cache(layers: int, slots: int, capacity: int = CAPACITY, move: MoveRows = move_rows) -> TreeCache:
    shape = BufferShape(HEADS, HEAD_DIM)
    return TreeCache([(shape, shape)] * layers, slots, capacity, move=move)


def _map_slots(cache: TreeCache, slots: list[int], real: torch.Tensor) -> SlotMapping:
    kv_range = cache.kv_range(slots, real.shape[1], padded=not real.all())
    return cache.map_slots(kv_range, real)


def _states(labels: torch.Tensor) -> torch.Tensor:
    """Keys ``[batch, heads, n, head_dim]`` with ``labels [batch, n]`` in every entry."""
    return labels[:, None, :, None].float().expand(-1, HEADS, -1, HEAD_DIM)


def _committed(cache: TreeCache, slot: int) -> list[list[float]]:
    """Labels in each layer's keys and negated values of a slot's committed tokens."""
    rows = slice(1, cache.lengths[slot] + 1)
    found = []
    for buffer, sign in zip(buffers(cache), [1, -1] * len(cache.tree_layers)):
        labels = sign * buffer[slot, :, rows]
        assert (labels == labels[:1, :, :1]).all()
        found.append(labels[0, :, 0].tolist())
    return found


def _write(cache: TreeCache, labels: torch.Tensor, real: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    keys = _states(labels.masked_fill(~real, -7))
    return [layer.update(keys, -keys) for layer in cache.tree_layers]


@pytest.mark.parametrize("move", [move_rows, pytest.param(fused_moves.move_rows, marks=needs_compiler)])
@given(st.data())
def test_any_sequence_of_steps_and_releases_equals_lists(move: MoveRows, data: st.DataObject) -> None:
    cache = _cache(layers=2, slots=SLOTS, move=move)
    expected: list[list[float]] = [[] for _ in range(SLOTS)]
    fresh = count(1)
    addresses: list[int] = []
    for _ in range(data.draw(st.integers(1, 8), "operations")):
        if data.draw(st.booleans(), "release"):
            slot = data.draw(st.integers(0, SLOTS - 1), "released")
            cache.truncate(slot)
            expected[slot] = []
            continue
        slots = data.draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, unique=True), "slots")
        room = CAPACITY - max(len(expected[slot]) for slot in slots)
        if room == 0:
            continue
        sizes = [data.draw(st.integers(1, room), "nodes") for _ in slots]
        real = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        labels = torch.tensor([[next(fresh) for _ in range(max(sizes))] for _ in slots])
        mapping = _map_slots(cache, slots, real)
        for keys, values in _write(cache, labels, real):
            assert torch.equal(keys, -values)
            for row, (slot, size) in enumerate(zip(slots, sizes, strict=True)):
                start = len(expected[slot]) + 1 - mapping.kv_range.first
                read = keys[row, 0, :, 0].tolist()
                assert read[1 - mapping.kv_range.first : start + size] == expected[slot] + labels[row, :size].tolist()
        accepted = [sorted({0} | data.draw(st.sets(st.integers(0, size - 1)), "accepted")) for size in sizes]
        commit(cache, accepted)
        for row, slot in enumerate(slots):
            expected[slot] += labels[row, accepted[row]].tolist()
        assert cache.lengths == cache.table.device_lengths.tolist() == [len(tokens) for tokens in expected]
        for slot in range(SLOTS):
            assert all(labels == expected[slot] for labels in _committed(cache, slot))
        pointers = [buffer.data_ptr() for buffer in buffers(cache)]
        addresses = addresses or pointers
        assert pointers == addresses


def test_a_step_of_uniform_slots_reads_a_view() -> None:
    cache = _cache(layers=1, slots=SLOTS)
    labels = torch.arange(1, 7).view(2, 3)
    mapping = _map_slots(cache, [1, 2], torch.ones(2, 3, dtype=torch.bool))
    ((keys, _),) = _write(cache, labels, torch.ones(2, 3, dtype=torch.bool))
    assert mapping.kv_range.contiguous
    assert keys.untyped_storage().data_ptr() == buffers(cache)[0].untyped_storage().data_ptr()
    assert keys[:, 0, :, 0].tolist() == labels.tolist()


def test_commit_works_outside_the_inference_mode_that_wrote() -> None:
    cache = _cache(layers=1, slots=1)
    real = torch.ones(1, 3, dtype=torch.bool)
    with torch.inference_mode():
        _map_slots(cache, [0], real)
        _write(cache, torch.tensor([[1, 2, 3]]), real)
    commit(cache, [[0, 2]])
    assert _committed(cache, 0)[0] == [1, 3]


def test_a_step_that_does_not_fit_is_an_error_and_changes_nothing() -> None:
    cache = _cache(layers=1, slots=2, capacity=4)
    real = torch.ones(1, 3, dtype=torch.bool)
    _map_slots(cache, [1], real)
    _write(cache, torch.tensor([[1, 2, 3]]), real)
    commit(cache, [[0, 1, 2]])
    with pytest.raises(EntMTPError, match="3 tokens and a step of 2 nodes do not fit its 4 rows"):
        _map_slots(cache, [0, 1], torch.ones(2, 2, dtype=torch.bool))
    assert _committed(cache, 1)[0] == [1, 2, 3]
    _map_slots(cache, [0], torch.ones(1, 4, dtype=torch.bool))


def test_memory_of_a_dropped_cache_is_free_at_once() -> None:
    cache = _cache(layers=2, slots=1)
    real = torch.ones(1, 3, dtype=torch.bool)
    _map_slots(cache, [0], real)
    _write(cache, torch.tensor([[1, 2, 3]]), real)
    references = [weakref.ref(buffer) for buffer in buffers(cache)]
    gc.disable()
    try:
        del cache
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()
