"""The target distribution against transformers' own processors."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from entmtp.decoding import warpers as module
from entmtp.decoding.warpers import Filters, target_probs
from entmtp.settings import SamplingParams

CPU = torch.device("cpu")


def by_transformers(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The same of one row ``[vocab]``."""
    steps: list[Any] = [TemperatureLogitsWarper(params.temperature)] if params.temperature != 1 else []
    steps += [TopKLogitsWarper(params.top_k)] if params.top_k else []
    steps += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    steps += [MinPLogitsWarper(params.min_p)] if params.min_p else []
    scores = logits[None].clone()
    for step in steps:
        scores = step(torch.zeros(1, 1, dtype=torch.int64), scores)
    return scores.softmax(-1)[0]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


@given(st.lists(PARAMS, min_size=1, max_size=5), st.sampled_from([7, 60, 3000]), st.integers(0, 10_000))
def test_it_is_what_transformers_processors_leave(requests: list[SamplingParams], vocab_size: int, seed: int) -> None:
    logits = 3 * torch.randn(len(requests), vocab_size, generator=torch.Generator().manual_seed(seed))
    found = target_probs(logits, Filters.of(requests, vocab_size, CPU))
    for row, params, own in zip(logits, requests, found, strict=True):
        expected = by_transformers(row, params)
        # A token whose cumulative chance is the bound to the last bit may fall on either side.
        differing = (own > 0) != (expected > 0)
        assert int(differing.sum()) <= 1
        assert float(expected[differing].sum() + own[differing].sum()) < 2e-3 or params.top_p == 1
        if not differing.any():
            torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-4)


def test_a_nucleus_larger_than_the_first_candidates_is_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", 8)
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(top_p=0.97)
    found = target_probs(logits, Filters.of([params, SamplingParams()], 500, CPU))
    torch.testing.assert_close(found[0], by_transformers(logits[0], params), atol=1e-6, rtol=1e-4)
    assert (found[0] > 0).sum() > 8
    assert (found[1] > 0).all()


def test_filters_are_repeated_for_the_nodes_of_a_tree() -> None:
    params = [SamplingParams(top_k=1), SamplingParams(temperature=0.5)]
    logits = torch.randn(2, 3, 20)
    together = target_probs(logits.flatten(0, 1), Filters.of(params, 20, CPU).repeat(3)).view(2, 3, 20)
    for row, own in enumerate(params):
        for node in range(3):
            torch.testing.assert_close(together[row, node], by_transformers(logits[row, node], own))
