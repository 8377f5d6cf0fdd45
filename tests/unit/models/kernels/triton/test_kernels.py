"""Each kernel against PyTorch's formula, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

from entmtp.models.kernels.triton.add_norm import add_norm
from entmtp.models.kernels.triton.rope_write import rope_write
from entmtp.models.kernels.triton.row_statistics import BLOCK, row_statistics
from entmtp.models.kernels.triton.silu_mul import silu_mul
from tests.helpers.triton_kernels import DEVICE, permutation, randn

seeds = st.integers(0, 2**16)
few = settings(max_examples=10, deadline=None)  # the interpreter is slow


def rms_norm(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Formula of transformers' ``LlamaRMSNorm``."""
    return weight * (states * (states.square().mean(-1, keepdim=True) + eps).rsqrt())


@few
@given(st.integers(1, 5), st.integers(1, 70), st.booleans(), seeds)
def test_a_sum_and_its_norm(rows: int, width: int, has_update: bool, seed: int) -> None:
    states, weight = randn(rows, width, seed=seed), randn(width, seed=seed + 1)
    update = randn(rows, width, seed=seed + 2) if has_update else None
    expected = states.clone() if update is None else states + update
    found = add_norm(states, update, weight, 1e-5)
    assert torch.equal(states, expected)
    torch.testing.assert_close(found, rms_norm(expected, weight, 1e-5))


@few
@given(st.integers(1, 4), st.sampled_from([1, 37, 1030]), seeds)
def test_a_gated_product(rows: int, width: int, seed: int) -> None:
    gate_up = randn(rows, 2 * width, seed=seed)
    gate, up = gate_up.split(width, dim=1)
    torch.testing.assert_close(silu_mul(gate_up), nn.functional.silu(gate) * up)


def rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Formula of transformers' ``apply_rotary_pos_emb``, of ``states [tokens, heads, head_dim]``."""
    low, high = states.chunk(2, dim=-1)
    return states * cosines[:, None] + torch.cat([-high, low], dim=-1) * sines[:, None]


@few
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 17), st.booleans(), seeds
)
def test_queries_and_keys_are_rotated_and_stored(
    batch: int, n: int, groups: int, kv_heads: int, half: int, has_norms: bool, seed: int
) -> None:
    heads, head_dim, capacity = groups * kv_heads, 2 * half, 12
    qkv = randn(batch * n, (heads + 2 * kv_heads) * head_dim, seed=seed)
    query, key, value = qkv.clone().view(batch * n, -1, head_dim).split([heads, kv_heads, kv_heads], dim=1)
    cosines, sines = randn(batch * n, head_dim, seed=seed + 1), randn(batch * n, head_dim, seed=seed + 2)
    norms = [randn(head_dim, seed=seed + at) for at in (3, 4)] if has_norms else [None, None]
    if norms[0] is not None and norms[1] is not None:
        query, key = rms_norm(query, norms[0], 1e-6), rms_norm(key, norms[1], 1e-6)
    pool = randn(2, 2 * batch, kv_heads, capacity, head_dim, seed=seed + 5)
    keys, values = pool.clone()
    slots = permutation(2 * batch, seed)[:batch]
    rows = torch.stack([permutation(capacity, seed + at)[:n] for at in range(batch)])  # 0 is padding
    rope_write(qkv, cosines, sines, *norms, 1e-6, keys, values, slots, rows)

    expected_keys, expected_values = pool.clone()
    for request in range(batch):
        for at in range(n):
            if (row := rows[request, at]) > 0:
                token = request * n + at
                expected_keys[slots[request], :, row] = rotated(key, cosines, sines)[token]
                expected_values[slots[request], :, row] = value[token]
    found = qkv.view(batch * n, -1, head_dim)
    torch.testing.assert_close(found[:, :heads], rotated(query, cosines, sines))
    torch.testing.assert_close(keys, expected_keys)
    assert torch.equal(values, expected_values)


@few
@given(st.integers(1, 3), st.sampled_from([1, 3, 97, BLOCK, BLOCK + 1, 2 * BLOCK + 5]), st.integers(1, 9), seeds)
def test_statistics_of_rows(rows: int, width: int, count: int, seed: int) -> None:
    logits = randn(rows, width, seed=seed) * 4
    found = row_statistics(logits[None], min(count, width))
    log_probs = logits.log_softmax(-1)
    ranked = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found.tokens[0], ranked.indices[:, : min(count, width)])
    assert torch.equal(found.values[0], ranked.values[:, : min(count, width)])
    torch.testing.assert_close(found.log_sum_exp[0], logits.logsumexp(-1))
    torch.testing.assert_close(found.entropy[0], -(log_probs.exp() * log_probs).sum(-1), rtol=1e-4, atol=1e-5)


@few
@given(st.integers(1, 2 * BLOCK), st.integers(2, 4), seeds)
def test_of_equal_logits_the_first_come_first(width: int, values: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(values, (2, width), generator=generator).float().to(DEVICE)
    count = min(5, width)
    expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(row_statistics(logits, count).tokens, expected)


def test_tokens_that_are_ruled_out_count_for_nothing() -> None:
    logits = torch.full((1, BLOCK + 9), float("-inf"), device=DEVICE)
    logits[0, 7], logits[0, BLOCK + 3] = 1.0, 2.0
    found = row_statistics(logits, 4)
    assert found.tokens.tolist() == [[BLOCK + 3, 7, 0, 1]]
    kept = torch.tensor([2.0, 1.0], device=DEVICE)
    torch.testing.assert_close(found.entropy[0], torch.distributions.Categorical(logits=kept).entropy())
    torch.testing.assert_close(found.log_sum_exp[0], kept.logsumexp(0))


def test_a_row_that_is_no_number_has_tokens_all_the_same() -> None:
    logits = torch.tensor([[float("nan")] * 3, [1.0, 3.0, 2.0]], device=DEVICE)
    found = row_statistics(logits, 2)
    assert bool((found.tokens >= 0).all() and (found.tokens < 3).all())
    assert bool(found.entropy[0].isnan())
    assert found.tokens[1].tolist() == [1, 2]
