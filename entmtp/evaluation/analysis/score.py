"""The task's own score of an answer. Every result has it, as a lossless speedup must not change it."""

from __future__ import annotations

from entmtp.suites import Prompt, get_suite


def score(prompt: Prompt, text: str) -> float | None:
    """Score an answer by its suite's metric, 0 to 1; None where the suite has no automatic score.

    For HumanEval this runs the model's code in a sandbox, see `entmtp.suites.sandbox`.
    """
    return get_suite(prompt.suite).score(prompt, text)


def metric(suite: str) -> str | None:
    """Name of the suite's score for tables ('pass@1', 'exact match'), or None where it has none."""
    return get_suite(suite).protocol.score
