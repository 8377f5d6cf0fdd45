"""The likeliest tokens in one call: those of a sort, of equals the first, with the log-probabilities of a softmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entmtp.models.kernels import compiled
from entmtp.models.kernels.fused_top_k import top_k

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")


@given(st.integers(1, 4), st.integers(1, 700), st.integers(0, 2**16), st.data())
def test_tokens_are_those_of_a_sort(rows: int, width: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(width, 20)))
    generator = torch.Generator().manual_seed(seed)
    # Few different values, so that many are equal, and some that no token can have.
    logits = torch.randint(-20, 20, (rows, width), generator=generator).float() / 2
    logits[:, 1:][torch.rand(rows, width - 1, generator=generator) < 0.1] = -torch.inf
    vocabulary = torch.randperm(3 * width, generator=generator)[:width].int()
    tokens, log_probs = top_k(logits, vocabulary, count)
    order = logits.sort(dim=-1, descending=True, stable=True)
    known = order.values[:, :count].isfinite()
    assert torch.equal(tokens[known], vocabulary[order.indices[:, :count]].long()[known])
    expected = order.values[:, :count] - logits.double().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 299])
def test_what_is_not_finite_gives_tokens_of_the_vocabulary_without_a_probability(bad: float, place: int) -> None:
    logits, vocabulary = torch.randn(2, 300), torch.arange(300, 600, dtype=torch.int32)
    expected = top_k(logits[1:], vocabulary, 5)
    logits[0, place] = bad
    tokens, log_probs = top_k(logits, vocabulary, 5)
    assert ((tokens >= 300) & (tokens < 600)).all()
    assert not log_probs[0].isfinite().any()
    assert torch.equal(tokens[1:], expected[0])  # another row is not harmed
    assert torch.equal(log_probs[1:], expected[1])


def test_shapes_before_the_last_dimension_stay() -> None:
    logits, vocabulary = torch.randn(2, 3, 40), torch.arange(40, dtype=torch.int32)
    tokens, log_probs = top_k(logits, vocabulary, 4)
    assert tokens.shape == log_probs.shape == (2, 3, 4)
    assert torch.equal(tokens[1, 2], logits[1, 2].topk(4).indices)
