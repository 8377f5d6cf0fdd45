"""Work of one step, as the scheduler hands it to the runner, and what the runner reports back."""

from __future__ import annotations

from collections.abc import Sequence as GenericSequence
from dataclasses import dataclass, field

from entmtp.decoding.sequence import Sequence


@dataclass(frozen=True)
class PrefillChunk:
    """A part of a sequence's prompt, to be read in one step."""

    sequence: Sequence
    tokens: GenericSequence[int]


@dataclass(frozen=True)
class Batch:
    """Work of one step.

    Attributes:
        sequences: all that have a slot. Those whose prompt has been read, in this step or before, decode.
        chunks: parts of prompts to read first, those of the oldest sequence first.
        failed: sequences that failed as the step was planned, and take no part in it.
    """

    sequences: list[Sequence]
    chunks: list[PrefillChunk]
    failed: list[Sequence]


@dataclass
class BatchResult:
    """Outcome of a batch. An error of one sequence is in its ``failure``.

    Attributes:
        batch: the work that was done.
        read: sequences whose prompt has been read and that want no new tokens.
        new_tokens: tokens that each decoding sequence has gained.
        errors: errors that may mean that model or device are broken.
        prefill_seconds, decode_seconds: time that reading prompts and decoding took.
    """

    batch: Batch
    read: list[Sequence] = field(default_factory=list)
    new_tokens: dict[Sequence, list[int]] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
