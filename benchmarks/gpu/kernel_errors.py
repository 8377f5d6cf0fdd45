"""Each Triton kernel alone against its formula in float64, on random numbers of a model's sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from entmtp.models.masks import AttentionWindow

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.02}
"""Allowed largest difference over the largest result: a few roundings of the type."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, of its requests' contexts, and the nodes of each request."""

    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 32_000
    contexts: tuple[int, ...] = (0, 3000, 511)
    nodes: int = 33


DRY = Sizes(width=40, heads=4, kv_heads=2, head_dim=10, vocab=50, contexts=(0, 21), nodes=3)
Result = tuple[torch.Tensor, torch.Tensor]
"""A kernel's result, and the expected one in float64."""


class Numbers:
    """Random numbers of a type on a device, the same in each run."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self.device = dtype, device
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator).to(self.device, self._dtype)


def kernel_errors(dtype: torch.dtype, device: torch.device, sizes: Sizes) -> dict[str, float]:
    """The largest difference of each kernel over its largest result; NaN if a result is NaN."""
    checks: dict[str, Callable[[Numbers, Sizes], Result]] = {
        "add and norm": _norm,
        "rotary embedding and cache write": _rope,
        "tree attention": _attention,
        "tree attention, sliding window": lambda numbers, sizes: _attention(numbers, sizes, window=100),
        "gated product": _gated,
        "log-sum-exp and entropy": _statistics,
    }
    errors = {}
    for name, check in checks.items():
        found, expected = check(Numbers(dtype, device), sizes)
        errors[name] = ((found.double() - expected).abs().max() / expected.abs().max()).item()
    return errors


def _norm(numbers: Numbers, sizes: Sizes) -> Result:
    from entmtp.models.kernels.triton.add_norm import add_norm

    states, update = (numbers.normal(sizes.nodes, sizes.width) for _ in range(2))
    weight = numbers.normal(sizes.width)
    total = (states + update).double()
    expected = weight.double() * total * (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return add_norm(states, update, weight, 1e-5), expected


def _rope(numbers: Numbers, sizes: Sizes) -> Result:
    """Rotated queries, then rotated keys and the values as the cache has them."""
    from entmtp.models.kernels.triton.rope_write import rope_write

    n, dim = sizes.nodes, sizes.head_dim
    qkv = numbers.normal(n, (sizes.heads + 2 * sizes.kv_heads) * dim)
    cosines, sines = (numbers.normal(n, dim) for _ in range(2))
    pool = numbers.normal(2, 1, sizes.kv_heads, n + 1, dim)
    slots = torch.zeros(1, dtype=torch.int64, device=numbers.device)
    heads = qkv.double().view(n, -1, dim)
    low, high = heads.chunk(2, dim=-1)
    turned = heads * cosines.double()[:, None] + torch.cat([-high, low], dim=-1) * sines.double()[:, None]
    expected = torch.cat([turned[:, : -sizes.kv_heads], heads[:, -sizes.kv_heads :]], dim=1)
    rows = torch.arange(1, n + 1, device=numbers.device)[None]
    rope_write(qkv, cosines, sines, None, None, 1e-5, pool[0], pool[1], slots, rows)
    stored = [buffer[0, :, 1:].transpose(0, 1) for buffer in pool]
    return torch.cat([qkv.view(n, -1, dim)[:, : sizes.heads], *stored], dim=1), expected


def _attention(numbers: Numbers, sizes: Sizes, window: int | None = None) -> Result:
    """Chains of nodes after contexts of several lengths."""
    from entmtp.models.kernels.triton.ancestor_bits import ancestor_bits
    from entmtp.models.kernels.triton.tree_attention import NO_WINDOW, tree_attention

    batch, n, dim = len(sizes.contexts), sizes.nodes, sizes.head_dim
    qkv = numbers.normal(batch * n, (sizes.heads + 2 * sizes.kv_heads) * dim)
    pool = numbers.normal(2, batch, sizes.kv_heads, max(sizes.contexts) + n + 1, dim)
    start = torch.tensor(sizes.contexts, device=numbers.device)
    chain = AttentionWindow.of_chains(start, torch.ones(batch, n, dtype=torch.bool, device=numbers.device))
    slots = torch.arange(batch, device=numbers.device)
    scaling, size = dim**-0.5, window or NO_WINDOW
    bits, positions = ancestor_bits(chain.tree_mask), chain.positions
    found = tree_attention(qkv, pool[0], pool[1], slots, start, bits, positions, scaling, size)
    expected = []
    for request, context in enumerate(sizes.contexts):
        query = qkv.double().view(batch, n, -1, dim)[request, :, : sizes.heads].transpose(0, 1)
        keys, values = pool[:, request, :, 1 : context + n + 1].double()
        keys, values = (each.repeat_interleave(sizes.heads // sizes.kv_heads, dim=0) for each in (keys, values))
        key_positions = torch.arange(context + n, device=numbers.device)
        distance = positions[request, :, None] - key_positions
        scores = (query @ keys.transpose(1, 2) * scaling).masked_fill((distance < 0) | (distance >= size), -torch.inf)
        expected.append((scores.softmax(-1) @ values).transpose(0, 1).reshape(n, -1))
    return found, torch.cat(expected)


def _gated(numbers: Numbers, sizes: Sizes) -> Result:
    from entmtp.models.kernels.triton.silu_mul import silu_mul

    gate_up = numbers.normal(sizes.nodes, 2 * sizes.width)
    gate, up = gate_up.double().chunk(2, dim=1)
    return silu_mul(gate_up), nn.functional.silu(gate) * up


def _statistics(numbers: Numbers, sizes: Sizes) -> Result:
    from entmtp.models.kernels.triton.row_statistics import row_statistics

    logits = 4 * numbers.normal(sizes.nodes, sizes.vocab)
    found = row_statistics(logits)
    log_probs = logits.double().log_softmax(-1)
    expected = [logits.double().logsumexp(-1), -(log_probs.exp() * log_probs).sum(-1)]
    return torch.stack([found.log_sum_exp, found.entropy]), torch.stack(expected)
