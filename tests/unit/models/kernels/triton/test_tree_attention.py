"""Attention over trees against the plain formula: random trees, ragged batches, windows, groups and splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from entmtp.models.kernels.triton.ancestor_bits import MAX_NODES, ancestor_bits
from entmtp.models.kernels.triton.tree_attention import NO_WINDOW, split_count, tree_attention
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import TREES, topologies
from tests.helpers.triton_kernels import DEVICE, permutation, randn

CAPACITY = 220


def attended(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    length: int,
    ancestors: torch.Tensor,
    depth: torch.Tensor,
    window: int,
    scaling: float,
) -> torch.Tensor:
    """Attention ``[n, heads, head_dim]`` of a request's ``query [n, heads, head_dim]`` to its slot, by the formula."""
    n, heads, _ = query.shape
    rows = torch.arange(1, 1 + length + n, device=query.device)
    prefix = torch.ones(n, length, dtype=torch.bool, device=query.device)
    visible = torch.cat([prefix, ancestors[:, :n]], dim=1)
    positions = length + depth
    row_positions = torch.cat([rows[:length] - 1, positions])
    visible = visible & (positions[:, None] - row_positions < window)
    groups = heads // len(keys)
    keys, values = (each[:, rows].repeat_interleave(groups, dim=0) for each in (keys, values))
    scores = torch.einsum("nhd,hrd->hnr", query, keys) * scaling
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0.0)  # padding sees nothing
    return torch.einsum("hnr,hrd->nhd", weights, values)


def check(
    trees: list[Topology],
    lengths: list[int],
    groups: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    splits: int | None,
    seed: int,
) -> None:
    """Compare the kernel with the formula for a batch of trees in slots in any order."""
    batch = TreeBatch.of(trees, DEVICE, rounded=False)
    n, requests, heads = batch.width, len(trees), groups * kv_heads
    slots = permutation(requests + 2, seed)[:requests]
    pool = randn(2, requests + 2, kv_heads, CAPACITY + 1, head_dim, seed=seed)
    start = torch.tensor(lengths, device=DEVICE)
    for request, (slot, tree) in enumerate(zip(slots.tolist(), trees, strict=True)):
        # What lies after the pass, and on padding, must not be read as more than a zero.
        pool[:, slot, :, lengths[request] + 2 + tree.nodes :] = float("nan")
        pool[:, slot, :, 0] = float("nan")
    qkv = randn(requests * n, (heads + 2 * kv_heads) * head_dim, seed=seed + 1)
    positions = start[:, None] + batch.depth
    bits = ancestor_bits(batch.ancestors)
    keys, values = pool
    found = tree_attention(qkv, keys, values, slots, start, bits, positions, 0.3, window, splits)
    query = qkv.view(requests, n, -1, head_dim)[:, :, :heads]
    for request, tree in enumerate(trees):
        own = 1 + tree.nodes
        expected = attended(
            query[request, :own],
            keys[slots[request]],
            values[slots[request]],
            lengths[request],
            batch.ancestors[request, :own],
            batch.depth[request, :own],
            window,
            0.3,
        )
        result = found.view(requests, n, heads, head_dim)[request, :own]
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)  # the interpreter is slow
@given(
    st.lists(st.tuples(topologies(), st.one_of(st.integers(0, 9), st.integers(60, 180))), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 19).map(lambda half: 2 * half),
    st.one_of(st.just(NO_WINDOW), st.integers(1, 90)),
    st.integers(1, 4),
    st.integers(0, 2**16),
)
def test_nodes_attend_to_their_path_alone(
    requests: list[tuple[Topology, int]],
    groups: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    splits: int,
    seed: int,
) -> None:
    trees, lengths = zip(*requests, strict=True)
    check(list(trees), list(lengths), groups, kv_heads, head_dim, window, splits, seed)


def test_a_window_hides_committed_rows_and_ancestors() -> None:
    chain = Topology.of([(0,) * depth for depth in range(1, 6)])
    check([chain, TREES["bushy"]], [20, 1], 2, 1, 8, 3, 2, seed=0)


def test_a_tree_of_64_nodes_uses_every_bit() -> None:
    chains = [(rank, *(0,) * depth) for rank in range(7) for depth in range(9)]
    tree = Topology.of(chains)
    assert tree.nodes + 1 == MAX_NODES
    check([tree, TREES["root"]], [70, 3], 2, 1, 16, NO_WINDOW, 2, seed=0)


def test_the_number_of_splits_fills_the_gpu() -> None:
    check([TREES["bushy"]], [150], 2, 2, 8, NO_WINDOW, None, seed=1)
    assert split_count(10**6, DEVICE) == 1
    assert split_count(1, DEVICE) > 1


def test_words_of_bits_have_a_bit_for_each_visible_node() -> None:
    visible = torch.rand(2, 5, MAX_NODES, generator=torch.Generator().manual_seed(0)) < 0.5
    visible[0, 0] = True
    words = ancestor_bits(visible)
    assert words.dtype == torch.int64
    unpacked = [[[word >> node & 1 for node in range(MAX_NODES)] for word in row] for row in words.tolist()]
    assert torch.equal(torch.tensor(unpacked).bool(), visible)
