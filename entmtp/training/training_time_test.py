"""Training-time test of EAGLE-3 heads (arXiv 2503.01840, section 3.2): they learn from states that they made.

Level 0 reads each token with the model's state of its predecessor. Level j reads it with the state that level j - 1
made of its predecessor, as when drafting. So the entry of a token at level j attends to the text up to its chain's
root, which is j tokens before it, and to one entry of each level from 1 to j: those of the tokens between.

A batch holds whole texts. Level 0 runs on all their tokens, and deeper levels on the answers' tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from entmtp.heads.eagle3.heads import Eagle3Heads
from entmtp.training.dataset import TextWithStates


@dataclass(frozen=True)
class TextBatch:
    """Texts of one batch, padded at their ends.

    Entry i of a text is the token at position i + 1, with the features of position i. ``width`` is that of the longest.

    Attributes:
        tokens: ``[batch, width]`` tokens of the entries.
        features: ``[batch, width, features]`` the model's states of the tokens' predecessors.
        answers: ``[batch, n]`` entries of the answers' tokens, from each answer's first on; any beyond its end.
        labels: ``[batch, n]`` the tokens that follow those of ``answers``.
        hidden: ``[batch, n, hidden_size]`` the decoder states from which the model chose them.
        valid: ``[batch, n]`` bool; False where the answer has ended.
    """

    tokens: torch.Tensor
    features: torch.Tensor
    answers: torch.Tensor
    labels: torch.Tensor
    hidden: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, texts: Sequence[TextWithStates], device: torch.device) -> TextBatch:
        """Batch of these texts in float32."""
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad([torch.tensor(each.text.tokens) for each in texts], batch_first=True)
        features = pad([each.states.features[:-1].float() for each in texts], batch_first=True)
        hidden = pad([each.states.hidden.float() for each in texts], batch_first=True)
        begins = torch.tensor([len(each.text.prompt) for each in texts])
        lengths = torch.tensor([len(each.text.answer) for each in texts])
        at = torch.arange(int(lengths.max()) - 1)
        first = (begins[:, None] + at).clamp(max=tokens.shape[1] - 2)  # positions of the answers' tokens
        batch = torch.arange(len(texts))[:, None]
        made = cls(
            tokens=tokens[:, 1:],
            features=features,
            answers=first - 1,
            labels=tokens[batch, first + 1],
            hidden=hidden[batch, first],
            valid=at < lengths[:, None] - 1,
        )
        return made.to(device)

    def to(self, device: torch.device) -> TextBatch:
        """Copy to ``device``."""
        names = "tokens", "features", "answers", "labels", "hidden", "valid"
        return TextBatch(*(getattr(self, name).to(device) for name in names))

    def valid_at(self, level: int) -> torch.Tensor:
        """Answers' entries ``[batch, n]`` whose chain of ``level`` guesses began within the answer."""
        return self.valid & (torch.arange(self.valid.shape[1], device=self.valid.device) >= level)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Values ``[batch, n, ...]`` of the answers' entries, of values of all entries."""
        return values[torch.arange(len(values), device=values.device)[:, None], self.answers]


class _Entries:
    """Keys and values of all entries so far, in each decoder layer."""

    def __init__(self, layers: int) -> None:
        self._keys: list[list[torch.Tensor]] = [[] for _ in range(layers)]
        self._values: list[list[torch.Tensor]] = [[] for _ in range(layers)]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a level's keys and values ``[batch, heads, n, head_dim]``; returns those of all levels."""
        self._keys[layer].append(keys)
        self._values[layer].append(values)
        return torch.cat(self._keys[layer], dim=2), torch.cat(self._values[layer], dim=2)


def level_states(heads: Eagle3Heads, batch: TextBatch, levels: int) -> Iterator[torch.Tensor]:
    """Yields each level's states ``[batch, n, draft_hidden_size]`` of the answers' entries.

    A state of level j guesses the token after its entry's, j guesses after its chain's root. Entries before the j-th
    have no such chain, and their states mean nothing.
    """
    layers, entries = heads.layers, _Entries(heads.config.num_layers)
    width, n = batch.tokens.shape[1], batch.answers.shape[1]
    at = torch.arange(width, device=batch.tokens.device)
    causal = (at <= at[:, None])[None]
    positions = (at + 1).expand_as(batch.tokens)
    states = layers.forward(batch.tokens, layers.inputs(batch.features), positions, causal, entries)
    states = batch.rows(states)
    yield states
    tokens, own = batch.rows(batch.tokens), torch.arange(n, device=at.device)
    for level in range(1, levels):
        inputs = states.roll(1, dims=1)
        text = at <= (batch.answers - level)[..., None]
        chain = [(own == own[:, None] - back).expand(len(tokens), n, n) for back in range(level - 1, -1, -1)]
        visible = torch.cat([text, *chain], dim=2)
        states = layers.forward(tokens, inputs, batch.answers + 1, visible, entries)
        yield states
