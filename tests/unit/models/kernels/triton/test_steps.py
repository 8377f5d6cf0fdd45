"""Acceptance and the move of cache rows against the operators that run elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from entmtp.decoding import acceptance
from entmtp.decoding.acceptance import Accepted
from entmtp.models import cache
from entmtp.models.kernels.triton.accept import accept_greedy
from entmtp.models.kernels.triton.ancestor_bits import ancestor_bits
from entmtp.models.kernels.triton.move_rows import move_rows
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import topologies
from tests.helpers.triton_kernels import DEVICE, permutation, randn

few = settings(max_examples=8, deadline=None)  # the interpreter is slow


@few
@given(
    st.lists(topologies(max_depth=3, max_rank=3), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 2**16),
)
def test_the_longest_right_path_is_accepted(trees: list[Topology], idle: int, broken: int, seed: int) -> None:
    batch = TreeBatch.of(trees, DEVICE, rounded=True, rows=len(trees) + idle)
    rows, width, vocab = batch.shape.batch_rows, batch.width, 3  # so few tokens that many guesses are right
    logits, hidden = randn(rows, width, vocab, seed=seed), randn(rows, width, 5, seed=seed + 1)
    tokens = torch.randint(vocab, (rows, width), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    if broken < len(trees):
        hidden[broken, 0, 3] = float("inf")
    found = Accepted(*accept_greedy(tokens, logits, hidden, ancestor_bits(batch.ancestors), batch))
    expected = acceptance.accept_greedy(tokens, logits, batch).with_finite_check(hidden)
    assert torch.equal(found.nodes, expected.nodes)
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.root, expected.root)
    entropies = [each.report[:, 4].view(torch.float64) for each in (found, expected)]
    torch.testing.assert_close(*entropies, rtol=1e-4, atol=1e-5)
    found.report[:, 4] = expected.report[:, 4]
    assert torch.equal(found.report, expected.report)


@few
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([1, 6, 130]),
    st.integers(1, 6),
    st.integers(0, 2**16),
)
def test_accepted_rows_move_together(
    batch: int, buffers: int, heads: int, head_dim: int, count: int, seed: int
) -> None:
    pool = randn(buffers, batch + 1, heads, 30, head_dim, seed=seed)
    slots = permutation(batch + 1, seed)[:batch]
    start = permutation(10, seed)[:batch]
    nodes = torch.stack([permutation(12, seed + at)[:count].sort().values for at in range(batch)])
    nodes[:, 0] = 0
    expected = pool.clone()
    cache.move_rows(expected, slots, start, nodes)
    move_rows(pool, slots, start, nodes)
    assert torch.equal(pool, expected)
