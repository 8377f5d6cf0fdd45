"""Zeros that take memory as they are written."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from entmtp.models.cache import BufferShape, TreeCache
from entmtp.models.lazy_zeros import lazy_zeros

MIB = 2**20


def used() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_they_are_zeros_that_can_be_written(dtype: torch.dtype) -> None:
    made = lazy_zeros((3, 5, 7), dtype, torch.device("cpu"))
    assert torch.equal(made, torch.zeros(3, 5, 7, dtype=dtype))
    made[1, 2:4] = 6
    assert int(made.sum()) == 2 * 7 * 6


@pytest.mark.parametrize("device", [None, torch.device("meta")])
def test_other_devices_and_empty_shapes_have_plain_ones(device: torch.device | None) -> None:
    assert lazy_zeros((2, 3), torch.float32, device).shape == (2, 3)
    assert lazy_zeros((0, 3), torch.float32, torch.device("cpu")).shape == (0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems write all zeros at once")
def test_a_cache_for_long_texts_takes_what_its_texts_take() -> None:
    shape = BufferShape(heads=2, head_dim=64)
    before = used()
    cache = TreeCache([(shape, shape)] * 8, slots=4, capacity=16_384)
    assert cache.bytes > 500 * MIB
    assert used() - before < 32 * MIB
    for pool in cache.pools.values():
        pool[:, 0, :, 1:257] = 1.0
    assert used() - before < 64 * MIB
    del pool, cache
    assert used() - before < 32 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems write all zeros at once")
def test_a_cache_may_be_larger_than_the_memory() -> None:
    size = 2 * psutil.virtual_memory().total
    made = lazy_zeros((size,), torch.uint8, torch.device("cpu"))
    made[-1] = 7
    assert int(made[-1]) == 7
