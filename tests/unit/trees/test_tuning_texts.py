"""Tuning texts of a bank decode to the ranks and entropies that a replay of small trees reads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from entmtp.calibration.optimal import MAX_RANK
from entmtp.trees.trace import MISS, RankedText
from entmtp.trees.tuning_texts import DIGITS, StoredText, TuningTexts
from tests.helpers.small_cases import drawn_trace, trace_of

RANKS = st.lists(st.sampled_from([0, 1, 9, 10, MAX_RANK - 1, MAX_RANK, 5000, MISS]), min_size=2, max_size=2)


@given(st.lists(st.tuples(RANKS, st.floats(0, 14)), min_size=1, max_size=20))
def test_ranks_that_a_tree_may_use_are_decoded_exactly_and_entropy_to_a_thousandth(
    rows: list[tuple[list[int], float]],
) -> None:
    text = RankedText(torch.tensor([ranks for ranks, _ in rows]), torch.tensor([nats for _, nats in rows]))
    back = StoredText.of(text).text()
    assert back.ranks.tolist() == [[rank if rank < MAX_RANK else MISS for rank in ranks] for ranks, _ in rows]
    assert back.entropy.tolist() == pytest.approx(text.entropy.tolist(), abs=6e-4)
    assert StoredText.of(back) == StoredText.of(text)


def test_there_is_a_digit_for_each_rank_of_a_tree() -> None:
    assert len(DIGITS) == MAX_RANK == len(set(DIGITS))


def test_ranks_are_encoded_as_words_and_entropies_as_numbers() -> None:
    stored = StoredText.of(trace_of([[0, 31], [MISS, 1]], [1.5, 0.0004]))
    assert (stored.ranks, stored.entropy) == ("0v .1", "1500 0")


def test_texts_without_a_position_are_left_out() -> None:
    empty = drawn_trace(5, [0.5], heads=2, seed=0)
    empty = type(empty)(empty.ranks[:0], empty.entropy[:0], empty.confidence[:0])
    assert len(TuningTexts.of([empty, trace_of([[0, 0]])], max_rungs=4).texts) == 1


@pytest.mark.parametrize(
    ("ranks", "entropy", "message"),
    [
        ("00 0", "1 1", "every position needs a rank for each head"),
        ("00 01", "1", "2 positions have ranks and 1 an entropy"),
        ("0w", "1", "ranks"),
        ("", "", "ranks"),
        ("00", "-1", "entropy"),
        ("00", "1.5", "entropy"),
        ("00", "9999999", "entropy"),
    ],
)
def test_a_malformed_text_is_refused(ranks: str, entropy: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StoredText(ranks=ranks, entropy=entropy)


def test_texts_of_different_heads_are_refused() -> None:
    texts = [StoredText(ranks="00", entropy="1"), StoredText(ranks="000", entropy="1")]
    with pytest.raises(ValidationError, match="same number of heads"):
        TuningTexts(max_rungs=4, texts=texts)
