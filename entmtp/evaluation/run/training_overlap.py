"""Counts of the scored prompts that draft heads were trained on.

Heads guess better on texts that they were trained on. Such prompts stay in the numbers, and the report counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from entmtp.evaluation.analysis.overlap_description import UNKNOWN, Overlap
from entmtp.evaluation.run.units import Unit
from entmtp.heads.training_prompts import read_training_prompt_hashes
from entmtp.prompt_hash import prompt_hash
from entmtp.suites import Prompt, get_suite


def training_overlap(units: Sequence[Unit], heads: Mapping[str, str]) -> dict[str, Overlap | str]:
    """Overlap of each kind of ``heads`` (its folder or hub name), or :data:`UNKNOWN`.

    Raises:
        EntMTPError: a list of training prompts can't be used.
    """
    found: dict[str, Overlap | str] = {}
    for kind, source in heads.items():
        trained_on = read_training_prompt_hashes(source)
        found[kind] = UNKNOWN if trained_on is None else _overlap(units, trained_on)
    return found


def _overlap(units: Sequence[Unit], trained_on: frozenset[str]) -> Overlap:
    found: dict[str, dict[str, int]] = {}
    for unit in units:
        counts = found.setdefault(unit.suite, {"seen": 0, "scored": 0})
        counts["scored"] += len(unit.prompts)
        counts["seen"] += sum(not trained_on.isdisjoint(_hashes(prompt)) for prompt in unit.prompts)
    return found


def _hashes(prompt: Prompt) -> set[str]:
    """Hashes of all user texts of a prompt: its message, the question within it, and the earlier messages."""
    earlier = [content for role, content in prompt.history if role == "user"]
    own = [prompt.text, get_suite(prompt.suite).benchmark_text(prompt), prompt.key or prompt.text]
    return {prompt_hash(text) for text in (*own, *earlier)}
