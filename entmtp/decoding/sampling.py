"""The model's own choice of a token at each node of a step's trees, by the sampling parameters of each request.

Sampling is lossless for any tree because of how a choice is made: the token at position t of an answer is where the
request's own random number u_t falls in the cumulative target distribution at that position. A tree is then verified as
in greedy decoding: the path goes on as long as a node holds the model's choice, and where none does, the choice itself
is the next root. For guesses that are not random themselves this is multi-candidate rejection sampling (SpecInfer,
arXiv 2305.09781, section 4.3; Sequoia, arXiv 2402.12374): a set of siblings is accepted with exactly the mass that the
target gives it, the most that any lossless rule can reach. It promises more: the same seed draws the same text with
every tree and policy, alone and in a batch, up to the rounding of the logits.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch

from entmtp.decoding.bad_words import Word, forbid
from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.warpers import Filters, target_probs
from entmtp.settings import SamplingParams
from entmtp.trees.batch import TreeBatch

GREEDY = SamplingParams(temperature=0.0)
_BLOCK = 512


@dataclass
class Sampler:
    """Sampling state of one request: its parameters, random numbers and token counts.

    Attributes:
        stop_ids: tokens that end the text; they are forbidden in the first ``min_tokens`` tokens.
        answer_index: index of the answer among the ``n`` to one prompt; each draws from a random stream of its own.
        prompt_index: index of the prompt among several with one seed; each draws from a random stream of its own.
        bad_words: token ids of words that are never completed.
        constraint: grammar of the answer; None if its text is free.
        written: new tokens so far.
    """

    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    answer_index: int = 0
    prompt_index: int = 0
    bad_words: Sequence[Word] = ()
    constraint: Constraint | None = None
    written: int = 0
    _text: list[int] = field(default_factory=list)
    _numbers: list[float] = field(default_factory=list)
    _seen: torch.Tensor | None = None
    _counts: torch.Tensor | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether it takes the likeliest token of unmodified logits."""
        return not (self.is_random or self.accepts_typical or self.modifies_logits or self.constraint)

    @property
    def is_random(self) -> bool:
        """Whether tokens are drawn at random. Medusa's typical acceptance takes the likeliest root instead."""
        return self.params.temperature > 0 and not self.accepts_typical

    @property
    def accepts_typical(self) -> bool:
        """Whether nodes are accepted by Medusa's typical acceptance, which is lossy."""
        return self.params.acceptance == "typical" and self.params.temperature > 0

    @property
    def has_penalties(self) -> bool:
        """Whether a penalty makes a choice depend on the tokens before it."""
        params = self.params
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    @property
    def modifies_logits(self) -> bool:
        """Whether penalties, bias or ``min_tokens`` change the model's logits."""
        biased = bool(self.params.logit_bias) or bool(self.bad_words)
        return self.has_penalties or biased or self._below_min_tokens

    @property
    def _below_min_tokens(self) -> bool:
        # A constraint itself allows an end: not before either, unless nothing else may follow.
        return bool(self.stop_ids) and self.written < self.params.min_tokens and self.constraint is None

    @cached_property
    def _stream(self) -> np.random.Generator:
        seed = secrets.randbits(64) if self.params.seed is None else self.params.seed
        # With an explicit dtype: a list with a number of 2^63 or more would become floats and merge adjacent seeds.
        key = np.array([seed, self.prompt_index << 32 | self.answer_index], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def uniform(self, position: int) -> float:
        """Random number in [0, 1) of a position in the answer; every call for one position returns the same number."""
        while position >= len(self._numbers):
            self._numbers += self._stream.random(_BLOCK).tolist()
        return self._numbers[position]

    def observe_prompt(self, prompt: Sequence[int], vocab_size: int, device: torch.device) -> None:
        """Note the prompt's tokens for the repetition penalty."""
        if self.has_penalties:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(sorted(set(prompt)), device=device)] = True
            self._counts = torch.zeros(vocab_size, device=device)

    def observe_tokens(self, tokens: Sequence[int]) -> None:
        """Count new tokens of the answer."""
        self.written += len(tokens)
        if self.bad_words:
            self._text += tokens
        if self._counts is not None:
            self._counts += torch.bincount(
                torch.tensor(tokens, device=self._counts.device), minlength=len(self._counts)
            )

    def process_logits(
        self,
        logits: torch.Tensor,
        paths: torch.Tensor,
        positions: torch.Tensor,
        path_tokens: Callable[[], Sequence[Sequence[int]]],
    ) -> torch.Tensor:
        """Apply penalties, bias, bad words and ``min_tokens`` to logits ``[n, vocab_size]``.

        Args:
            paths: counts ``[n, vocab_size]`` of each token on the path from the root to the node, both included.
            positions: position ``[n]`` in the answer of the token to be chosen.
            path_tokens: returns the tokens of each path, in order.
        """
        if self._seen is not None and self._counts is not None:
            logits = self._apply_penalties(logits, self._seen, self._counts + paths)
        if self.params.logit_bias:
            ids = torch.tensor(list(self.params.logit_bias), device=logits.device)
            logits = logits.index_add(
                -1,
                ids,
                torch.tensor(list(self.params.logit_bias.values()), device=logits.device).expand(len(logits), -1),
            )
        if self.bad_words:
            logits = forbid(logits, self.bad_words, [[*self._text, *path] for path in path_tokens()])
        if self._below_min_tokens:
            stop_ids = torch.tensor(sorted(self.stop_ids), device=logits.device)
            forbidden = torch.zeros_like(logits, dtype=torch.bool)
            forbidden[:, stop_ids] = (positions < self.params.min_tokens)[:, None]
            logits = logits.masked_fill(forbidden, -math.inf)
        return logits

    def _apply_penalties(self, logits: torch.Tensor, seen: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        params = self.params
        divided = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = torch.where(seen | (counts > 0), divided, logits)
        return logits - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


def process_logits(
    logits: torch.Tensor, tokens: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]
) -> torch.Tensor:
    """Apply each request's penalties, bias and ``min_tokens`` to its nodes' logits ``[batch, width, vocab_size]``.

    ``tokens [batch, width]`` belong to the nodes, the root first. The root is chosen already, but not in the sampler's
    counts yet.
    """
    if not any(sampler.modifies_logits for sampler in samplers):
        return logits
    processed = []
    for row, sampler in enumerate(samplers):
        own = logits[row].float()
        if sampler.modifies_logits:
            positions = sampler.written + 1 + trees.depth[row]
            counts = _path_counts(row, tokens, trees, own.shape[-1])
            own = sampler.process_logits(own, counts, positions, partial(_path_tokens, row, tokens, trees))
        processed.append(own)
    return torch.stack(processed)


def choose_tokens(logits: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Choose the token ``[batch, width]`` after each node, from processed logits."""
    depths = range(1, trees.max_depth + 2)
    positions = [[sampler.written + depth for depth in depths] for sampler in samplers]
    return choose_at(logits, samplers, positions, trees.depth)


def choose_first_token(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """Choose the first token ``[]`` of an answer, from the ``logits [vocab_size]`` after its prompt."""
    position = torch.zeros(1, dtype=torch.int64, device=logits.device)
    row = logits[None].float()
    if sampler.modifies_logits:
        row = sampler.process_logits(row, torch.zeros_like(row), position, lambda: [[]])
    if sampler.constraint is not None:
        row = sampler.constraint.apply_mask(row)
    return choose_at(row[None], [sampler], [[0]], position[None])[0, 0]


def choose_at(
    logits: torch.Tensor, samplers: Sequence[Sampler], positions: Sequence[Sequence[int]], index: torch.Tensor
) -> torch.Tensor:
    """Choose tokens ``[batch, width]``: node ``w`` of answer ``b`` for position ``positions[b][index[b, w]]``."""
    best = logits.max(-1).indices  # as argmax, in a third of its time on a CPU
    random = [row for row, sampler in enumerate(samplers) if sampler.is_random]
    if not random:
        return best
    rows = torch.tensor(random, device=logits.device)
    filters = Filters.of([samplers[row].params for row in random], logits.shape[-1], logits.device)
    numbers = [list(map(samplers[row].uniform, positions[row])) for row in random]
    uniforms = torch.tensor(numbers, dtype=torch.float64, device=logits.device).gather(1, index[rows])
    return best.index_copy(0, rows, _draw(logits[rows], filters, uniforms))


def _draw(logits: torch.Tensor, filters: Filters, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw tokens ``[batch, width]``: where ``uniforms [batch, width]`` fall in the cumulative target distributions."""
    batch, width, _ = logits.shape
    mass = target_probs(logits.flatten(0, 1), filters.repeat(width)).double().cumsum(-1)
    total = mass[:, -1:]
    # At most just below the total, so that the token found always has a mass of its own.
    wanted = torch.minimum(uniforms.flatten()[:, None] * total, total.nextafter(torch.zeros_like(total)))
    # Without finite logits no mass is found; the result must be a valid token even so.
    return torch.searchsorted(mass, wanted, right=True).clamp(max=mass.shape[-1] - 1).view(batch, width)


def _path_counts(row: int, tokens: torch.Tensor, trees: TreeBatch, vocab_size: int) -> torch.Tensor:
    """Counts of each token on the path from the root to each node, both included ``[width, vocab_size]``."""
    ancestors = trees.ancestors[row].float()
    counts = torch.zeros(trees.width, vocab_size, device=tokens.device)
    return counts.index_add(1, tokens[row], ancestors)


def _path_tokens(row: int, tokens: torch.Tensor, trees: TreeBatch) -> list[list[int]]:
    """Tokens on the path from the root to each node of a tree, both included."""
    own = tokens[row].tolist()
    return [[own[node] for node in path.nonzero()[:, 0].tolist()] for path in trees.ancestors[row]]
