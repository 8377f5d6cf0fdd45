"""Counts of the scored prompts that draft heads were trained on, as sentences and as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

UNKNOWN = "not known for these heads"
Overlap = Mapping[str, Mapping[str, int]]
"""By suite: the number of ``scored`` prompts, and how many of them were ``seen`` in training."""


def describe_overlap(overlaps: Mapping[str, Overlap | str]) -> Iterator[str]:
    """Sentences, one for each kind of heads, with every suite's count."""
    for kind, overlap in overlaps.items():
        if isinstance(overlap, str):
            yield f"scored prompts that the {kind} heads were trained on: {overlap}"
        else:
            counts = ", ".join(f"{suite} {count['seen']} of {count['scored']}" for suite, count in overlap.items())
            yield f"scored prompts that the {kind} heads were trained on: {counts}"


def overlap_caveats(provenance: Mapping[str, Any]) -> list[str]:
    """Warnings about a benchmark's ``training_overlap``; none where the heads have seen no scored prompt."""
    sentences = []
    for kind, overlap in provenance.get("training_overlap", {}).items():
        if isinstance(overlap, str):
            sentences.append(f"Scored prompts may be among those that the {kind} heads were trained on: {overlap}.")
            continue
        seen = [f"{one['seen']} of {one['scored']} of {suite}" for suite, one in overlap.items() if one["seen"]]
        if seen:
            sentences.append(
                f"The {kind} heads were trained on some of the scored prompts ({', '.join(seen)}), and may guess better"
                " there than elsewhere."
            )
    return sentences


def overlap_metrics(provenance: Mapping[str, Any]) -> dict[str, float]:
    """The counts as metrics, ``training_overlap/<kind>/<suite>``; none of heads whose training prompts are unknown."""
    return {
        f"training_overlap/{kind}/{suite}": float(counts["seen"])
        for kind, overlap in provenance.get("training_overlap", {}).items()
        if not isinstance(overlap, str)
        for suite, counts in overlap.items()
    }
