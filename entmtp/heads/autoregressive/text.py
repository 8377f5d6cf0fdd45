"""Whole texts under autoregressive heads, for rank traces: states at all positions in a few passes."""

from __future__ import annotations

import torch

from entmtp.heads.autoregressive.drafter import AutoregressiveDrafter
from entmtp.heads.autoregressive.expansion import AutoregressiveExpansion, Roots
from entmtp.heads.interface import TracedText
from entmtp.models.masks import AttentionWindow

ROOTS_PER_PASS = 128
"""Roots whose continuations are run in one pass."""


class AutoregressiveText(TracedText):
    """A text in a cache of its own; guesses use the cache rows after its end."""

    @torch.inference_mode()
    def __init__(
        self, drafter: AutoregressiveDrafter, features: torch.Tensor, tokens: torch.Tensor, begin: int
    ) -> None:
        """Reads the text; ``drafter`` has its own cache with one empty slot. See :meth:`DraftHeads.traced_text`."""
        self._drafter, self._begin, self._length = drafter, begin, len(tokens)
        self._end = torch.full((1,), self._length, device=tokens.device)
        drafter.cache.append([0], [self._length])
        no_entry = torch.zeros_like(drafter.states)  # token 0 has no predecessor
        self._states = torch.cat([no_entry, *drafter.prefill_states(0, features, tokens.tolist())])

    @torch.inference_mode()
    def teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        parts = zip((at + self._begin).split(ROOTS_PER_PASS), tokens.split(ROOTS_PER_PASS), strict=True)
        return torch.cat([self._teacher_forced(*part) for part in parts])

    def _teacher_forced(self, at: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        layers, count = self._drafter.num_layers, len(at)
        # On its own level, a layer's state of a true token is its state of the text.
        forced = [self._states[self._inside(at + level), level] for level in range(layers)]
        states = self._states[self._inside(at + layers - 1), -1][None]
        prefix_lengths = (at + layers).clamp(max=self._length)[None]
        own_path = torch.eye(count, dtype=torch.bool, device=at.device)
        for level in range(layers, self._drafter.num_heads):
            depths = torch.arange(layers, level + 1, device=at.device).repeat_interleave(count)
            window = AttentionWindow(
                prefix_lengths=prefix_lengths,
                start=self._end,
                tree_mask=own_path.repeat(1, level - layers + 1)[None],
                positions=(at + level)[None],
                tree_positions=(at.repeat(level - layers + 1) + depths)[None],
                real=torch.ones(1, count, dtype=torch.bool, device=at.device),
            )
            start = self._end + (level - layers) * count
            states = self._drafter.run_last_layer((0,), tokens[None, :, level], states, window, start)
            forced.append(states[0])
        return torch.stack(forced, dim=1)

    def expand(self, at: int) -> AutoregressiveExpansion:
        position = torch.full_like(self._end, self._begin + at)
        roots = Roots((0,), prefix_lengths=position + 1, start=self._end, position=position)
        return AutoregressiveExpansion(self._drafter, roots, self._states[position])

    def _inside(self, at: torch.Tensor) -> torch.Tensor:
        return at.clamp(max=self._length - 1)
