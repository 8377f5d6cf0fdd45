"""Times of two arms, prompt by prompt, for the same work."""

from __future__ import annotations

from typing import Any

import pytest

from entmtp.evaluation.analysis.by_prompt import paired_seconds


def prompt(new_tokens: int, *seconds: float) -> list[dict[str, Any]]:
    return [{"new_tokens": new_tokens, "seconds": each} for each in seconds]


def test_both_times_are_those_of_their_tokens() -> None:
    """Where texts differ in length, a long one of ours must not weigh more than theirs did."""
    ours = {"b": prompt(40, 4.0), "a": prompt(10, 3.0, 2.0, 2.0), "ours alone": prompt(5, 1.0)}
    theirs = {"a": prompt(20, 6.0), "b": prompt(10, 2.0), "theirs alone": prompt(5, 1.0)}
    our_seconds, their_seconds = paired_seconds(ours, theirs)
    assert our_seconds.tolist() == pytest.approx([20 * 0.2, 10 * 0.1])
    assert their_seconds.tolist() == pytest.approx([6.0, 2.0])
