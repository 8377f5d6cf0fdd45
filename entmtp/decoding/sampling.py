"""Which token the model itself chooses at each node of a step's trees, as each request asks it to choose.

Sampling is lossless for any tree because of how a choice is made: the token at place t of an answer is where the
request's own random number u_t falls in the cumulative target distribution at that place. A tree is then verified as in
greedy decoding: the path goes on as long as a node holds the model's choice, and where none does, the choice itself is
the next root. For guesses that are not random themselves this is multi-candidate rejection sampling (SpecInfer, arXiv
2305.09781, section 4.3; Sequoia, arXiv 2402.12374): a set of siblings is accepted with exactly the mass that the target
gives it, the most that any lossless rule can reach. It promises more: the same seed draws the same text with every
tree and policy, alone and in a batch, up to the rounding of the logits.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from entmtp.decoding.warpers import Filters, target
from entmtp.settings import SamplingParams
from entmtp.trees.batch import TreeBatch

GREEDY = SamplingParams(temperature=0.0)
_BLOCK = 512


@dataclass
class Sampler:
    """One request's way to choose, and what it remembers of its text.

    Attributes:
        number: which of the ``n`` answers to one prompt this is; each draws from a stream of its own.
        prompt_number: which of several prompts with one seed it answers; the same holds for each of them.
        stops: tokens that end the text, which may not come before ``min_tokens``.
    """

    params: SamplingParams
    stops: frozenset[int] = frozenset()
    number: int = 0
    prompt_number: int = 0
    written: int = 0
    _numbers: list[float] = field(default_factory=list)
    _seen: torch.Tensor | None = None
    _counts: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether it takes the model's likeliest token as it is."""
        return not self.draws and not self.typical and not self.shapes

    @property
    def draws(self) -> bool:
        """Whether chance decides; Medusa's typical acceptance goes on from the likeliest token at any temperature."""
        return self.params.temperature > 0 and not self.typical

    @property
    def typical(self) -> bool:
        """Whether guesses are accepted that the model did not choose."""
        return self.params.acceptance == "typical" and self.params.temperature > 0

    @property
    def penalises(self) -> bool:
        """Whether a choice depends on the tokens before it."""
        params = self.params
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    @property
    def shapes(self) -> bool:
        """Whether it changes the model's logits."""
        return self.penalises or bool(self.params.logit_bias) or self._may_not_end

    @property
    def _may_not_end(self) -> bool:
        return bool(self.stops) and self.written < self.params.min_tokens

    @cached_property
    def _stream(self) -> np.random.Generator:
        seed = secrets.randbits(64) if self.params.seed is None else self.params.seed
        # As numpy's own integers: a list with one of 2^63 or more would become floats, and neighbours one seed.
        key = np.array([seed, self.prompt_number << 32 | self.number], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def uniform(self, place: int) -> float:
        """The random number in [0, 1) of a place in the answer, whenever it is asked for."""
        while place >= len(self._numbers):
            self._numbers += self._stream.random(_BLOCK).tolist()
        return self._numbers[place]

    def read(self, prompt: Sequence[int], vocab_size: int, device: torch.device) -> None:
        """Begins behind a prompt."""
        if self.penalises:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(sorted(set(prompt)), device=device)] = True
            self._counts = torch.zeros(vocab_size, device=device)

    def write(self, tokens: Sequence[int]) -> None:
        """Takes in what came out."""
        self.written += len(tokens)
        if self._counts is not None:
            self._counts += torch.bincount(
                torch.tensor(tokens, device=self._counts.device), minlength=len(self._counts)
            )

    def shape(self, logits: torch.Tensor, paths: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, vocab_size]`` after penalties, bias and forbidden ends.

        ``paths [n, vocab_size]`` says how often each token stands on the way to the node, the node included;
        ``places [n]`` is the place in the answer of the token to be chosen.
        """
        if self._seen is not None and self._counts is not None:
            logits = self._penalised(logits, self._seen, self._counts + paths)
        if self.params.logit_bias:
            ids = torch.tensor(list(self.params.logit_bias), device=logits.device)
            logits = logits.index_add(
                -1,
                ids,
                torch.tensor(list(self.params.logit_bias.values()), device=logits.device).expand(len(logits), -1),
            )
        if self._may_not_end:
            stops = torch.tensor(sorted(self.stops), device=logits.device)
            forbidden = torch.zeros_like(logits, dtype=torch.bool)
            forbidden[:, stops] = (places < self.params.min_tokens)[:, None]
            logits = logits.masked_fill(forbidden, -math.inf)
        return logits

    def _penalised(self, logits: torch.Tensor, seen: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        params = self.params
        divided = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = torch.where(seen | (counts > 0), divided, logits)
        return logits - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


def shaped(logits: torch.Tensor, tokens: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]) -> torch.Tensor:
    """The logits ``[batch, width, vocab_size]`` of all nodes as their requests want them, before any temperature.

    ``tokens [batch, width]`` are the nodes', the root first: the token that its request has chosen and not written yet.
    """
    if not any(sampler.shapes for sampler in samplers):
        return logits
    rows = []
    for row, sampler in enumerate(samplers):
        own = logits[row].float()
        if sampler.shapes:
            places = sampler.written + 1 + trees.depth[row]
            own = sampler.shape(own, _on_path(row, tokens, trees, own.shape[-1]), places)
        rows.append(own)
    return torch.stack(rows)


def choose(logits: torch.Tensor, trees: TreeBatch, samplers: Sequence[Sampler]) -> torch.Tensor:
    """The model's choice ``[batch, width]`` behind each node, from :func:`shaped` logits."""
    depths = range(1, trees.max_depth + 2)
    places = [[sampler.written + depth for depth in depths] for sampler in samplers]
    return _chosen(logits, samplers, places, trees.depth)


def choose_first(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """The first token ``[]`` of an answer, from the ``logits [vocab_size]`` behind its prompt."""
    place = torch.zeros(1, dtype=torch.int64, device=logits.device)
    row = logits[None].float()
    if sampler.shapes:
        row = sampler.shape(row, torch.zeros_like(row), place)
    return _chosen(row[None], [sampler], [[0]], place[None])[0, 0]


def _chosen(
    logits: torch.Tensor, samplers: Sequence[Sampler], places: Sequence[Sequence[int]], which: torch.Tensor
) -> torch.Tensor:
    """Choices ``[batch, width]``; ``places[b][which[b, w]]`` is the place in the answer that a node chooses for."""
    best = logits.max(-1).indices  # as argmax, in a third of its time on a CPU
    drawing = [sampler.draws for sampler in samplers]
    if not any(drawing):
        return best
    filters = Filters.of([sampler.params for sampler in samplers], logits.shape[-1], logits.device)
    numbers = [list(map(sampler.uniform, own)) for sampler, own in zip(samplers, places, strict=True)]
    uniforms = torch.tensor(numbers, dtype=torch.float64, device=logits.device).gather(1, which)
    drawn = _drawn(logits, filters, uniforms)
    return torch.where(torch.tensor(drawing, device=best.device)[:, None], drawn, best)


def _drawn(logits: torch.Tensor, filters: Filters, uniforms: torch.Tensor) -> torch.Tensor:
    """Where ``uniforms [batch, width]`` fall in the targets of ``logits [batch, width, vocab_size]``."""
    batch, width, _ = logits.shape
    mass = target(logits.flatten(0, 1), filters.repeated(width)).double().cumsum(-1)
    total = mass[:, -1:]
    # Just below the total at most, so that what is found always has a mass of its own.
    wanted = torch.minimum(uniforms.flatten()[:, None] * total, total.nextafter(torch.zeros_like(total)))
    # No mass can be found where logits are not numbers, and whatever comes of such a request must be a token.
    return torch.searchsorted(mass, wanted, right=True).clamp(max=mass.shape[-1] - 1).view(batch, width)


def _on_path(row: int, tokens: torch.Tensor, trees: TreeBatch, vocab_size: int) -> torch.Tensor:
    """How often each token stands on the way from the root to each node, both included ``[width, vocab_size]``."""
    ancestors = trees.ancestors[row].float()
    counts = torch.zeros(trees.width, vocab_size, device=tokens.device)
    return counts.index_add(1, tokens[row], ancestors)
