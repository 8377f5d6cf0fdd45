"""A corpus with its states, as texts to train on and texts held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from entmtp.errors import EntMTPError
from entmtp.models.states import States
from entmtp.training.corpus import Text, part_paths, read_part
from entmtp.training.states import read_states


@dataclass(frozen=True)
class TextWithStates:
    """A text and the model's states of all its tokens: ``[n, hidden_size]``, and features ``[n, width]``, in bfloat16.

    They are views of mapped files.
    """

    text: Text
    states: States


class Dataset:
    """The texts of a corpus, each in a training or a held-out set by a hash of its prompt.

    Attributes:
        train, held_out: the texts of each set.
        fingerprint: hash of all texts.

    Raises:
        EntMTPError: if there are no texts, too few for a held-out set, or states of other texts.
    """

    def __init__(self, corpus: Path, states: Path, held_out_share: float) -> None:
        paths = part_paths(corpus)
        if not paths:
            raise EntMTPError(f"corpus: no part-*.safetensors in {corpus}; write a corpus first")
        texts = [each for path in paths for each in _part(path, states / path.name)]
        # An answer of one token leaves nothing to guess.
        texts = [each for each in texts if len(each.text.answer) > 1]
        self.train = [each for each in texts if not _is_held_out(each.text, held_out_share)]
        self.held_out = [each for each in texts if _is_held_out(each.text, held_out_share)]
        self.fingerprint = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        if not self.train or not self.held_out:
            raise EntMTPError(
                f"corpus: {len(texts)} answers are too few to hold out a share of {held_out_share}; write more text"
            )

    @property
    def texts(self) -> list[TextWithStates]:
        """All texts."""
        return [*self.train, *self.held_out]

    @property
    def hidden_size(self) -> int:
        """Width of the decoder states."""
        return self.train[0].states.hidden.shape[1]

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers together."""
        return sum(len(each.text.answer) for each in self.texts)

    def frequent_tokens(self, count: int, vocab_size: int) -> torch.Tensor:
        """The most frequent tokens of the training text, most frequent first, ``[count]`` int32."""
        answers = [torch.tensor(each.text.answer) for each in self.train]
        frequency = torch.bincount(torch.cat(answers), minlength=vocab_size)
        return frequency.argsort(descending=True, stable=True)[:count].to(torch.int32)


def _part(path: Path, states_path: Path) -> list[TextWithStates]:
    texts, states = read_part(path), read_states(states_path)
    ends = torch.tensor([len(text.tokens) for text in texts]).cumsum(0).tolist()
    if ends[-1:] != [len(states.hidden)]:
        raise EntMTPError(f"states: {states_path} is not of {path}; remove it, and it is computed again")
    begins = [0, *ends[:-1]]
    return [
        TextWithStates(text, States(states.hidden[begin:end], states.features[begin:end]))
        for text, begin, end in zip(texts, begins, ends, strict=True)
    ]


def _is_held_out(text: Text, share: float) -> bool:
    return int(text.prompt_id[-8:], 16) / 0xFFFFFFFF < share


@dataclass(frozen=True)
class Positions:
    """Positions of answers, from each of which a step could start.

    Attributes:
        tokens: ``[total]`` tokens of all answers.
        states: ``[total, hidden_size]`` the decoder state from which each of them was chosen.
        end_of: ``[total]`` end of each token's answer.
    """

    tokens: torch.Tensor
    states: torch.Tensor
    end_of: torch.Tensor

    @classmethod
    def of(cls, texts: Sequence[TextWithStates]) -> Positions:
        """Positions of the texts' answers, in memory."""
        lengths = torch.tensor([len(each.text.answer) for each in texts])
        return cls(
            torch.tensor([token for each in texts for token in each.text.answer]),
            torch.cat([each.states.hidden[len(each.text.prompt) - 1 : -1] for each in texts]),
            lengths.cumsum(0).repeat_interleave(lengths),
        )

    @property
    def usable(self) -> torch.Tensor:
        """Positions ``[n]`` with a token after them."""
        return (torch.arange(len(self.tokens)) + 1 < self.end_of).nonzero()[:, 0]

    def batch(self, positions: torch.Tensor, heads: int) -> Batch:
        """Gathers tokens and states at ``positions``; entries after an answer's end are marked invalid."""
        at = positions[:, None] + torch.arange(heads + 1)
        inside = at < self.end_of[positions][:, None]
        at = at.clamp(max=len(self.tokens) - 1)
        return Batch(self.tokens[at], self.states[at], inside[:, 1:])


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
