"""A corpus as training positions: a step could start at every generated token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from entmtp.errors import EntMTPError
from entmtp.training.corpus import part_paths, read_part


@dataclass(frozen=True)
class Batch:
    """A batch of training positions.

    Attributes:
        tokens: ``[n, heads + 1]``, the root and the tokens after it.
        states: ``[n, heads + 1, hidden_size]``, the decoder state from which each of them was chosen.
        valid: ``[n, heads]`` bool; False if the answer ended before that token.
    """

    tokens: torch.Tensor
    states: torch.Tensor
    valid: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to ``device``, with states in float32."""
        return Batch(self.tokens.to(device), self.states.to(device, torch.float32), self.valid.to(device))


class Dataset:
    """All parts of one or several corpus folders, in memory (2 bytes per hidden unit and token).

    Answers are split into a training and a held-out set by a hash of their prompt, so that no prompt is in both.

    Raises:
        EntMTPError: if there are no parts, or too little text for a held-out set.
    """

    def __init__(self, folders: Sequence[Path], held_out_share: float) -> None:
        paths = [path for folder in folders for path in part_paths(folder)]
        if not paths:
            raise EntMTPError(f"corpus: no part-*.safetensors in {', '.join(map(str, folders))}; write a corpus first")
        parts = [read_part(path) for path in paths]
        if len(widths := sorted({part.states.shape[1] for part in parts})) > 1:
            raise EntMTPError(f"corpus: its parts have hidden sizes {widths}; use folders written by one model")
        self.tokens = torch.cat([part.tokens for part in parts])
        self.states = torch.cat([part.states for part in parts])
        lengths = torch.cat([part.starts.diff() for part in parts])
        ends = lengths.cumsum(0)
        self.end_of = ends.repeat_interleave(lengths)
        prompt_ids = [prompt_id for part in parts for prompt_id in part.prompt_ids]
        is_held_out = torch.tensor([int(each[-8:], 16) / 0xFFFFFFFF < held_out_share for each in prompt_ids])
        is_held_out_position = is_held_out.repeat_interleave(lengths)
        usable = torch.arange(len(self.tokens)) + 1 < self.end_of
        self.train = (usable & ~is_held_out_position).nonzero()[:, 0]
        self.held_out = (usable & is_held_out_position).nonzero()[:, 0]
        self.prompt_ids = prompt_ids
        self.answers = len(prompt_ids)
        self.fingerprint = hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()
        if not len(self.train) or not len(self.held_out):
            raise EntMTPError(
                f"corpus: {self.answers} answers are too few to hold out a share of {held_out_share}; write more text"
            )

    def batch(self, positions: torch.Tensor, heads: int) -> Batch:
        """Gathers tokens and states at ``positions``; entries after an answer's end are marked invalid."""
        at = positions[:, None] + torch.arange(heads + 1)
        inside = at < self.end_of[positions][:, None]
        at = at.clamp(max=len(self.tokens) - 1)
        return Batch(self.tokens[at], self.states[at], inside[:, 1:])

    def frequent_tokens(self, count: int, vocab_size: int) -> torch.Tensor:
        """The most frequent tokens of the training text, most frequent first, ``[count]`` int32."""
        frequency = torch.bincount(self.tokens[self.train], minlength=vocab_size)
        return frequency.argsort(descending=True, stable=True)[:count].to(torch.int32)
