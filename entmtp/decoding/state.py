"""What the device holds of running requests between steps, so that a step needs nothing from the host but trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from entmtp.decoding.acceptance import Accepted
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.sampling import GREEDY, Sampler, choose_first
from entmtp.decoding.timers import Stopwatch
from entmtp.heads.base import DraftHeads
from entmtp.heads.growth import Growth, LevelByLevel
from entmtp.models.backbone import Backbone
from entmtp.models.cache import NO_ROWS, TreeCache
from entmtp.policies.signals import entropy
from entmtp.trees.batch import TreeBatch, rounded_rows


class DecodingState:
    """Requests in the slots of a cache; all memory is allocated at construction.

    Attributes:
        root: ``[slots]`` the token that the model chose last.
        hidden: ``[slots, hidden_size]`` the decoder state that it was chosen from.
        capacity: rows of each slot for a text and a tree; the heads may have more of their own.
        cache: keys and values of everything before the root.
        memory: the heads' part of the cache, if they have one.
        graphs: what the parts of a step run through.
    """

    def __init__(self, backbone: Backbone, heads: DraftHeads | None, slots: int, capacity: int) -> None:
        self.backbone = backbone
        self.heads = heads
        self.capacity = capacity
        self.cache: TreeCache = backbone.new_cache(slots, capacity, NO_ROWS if heads is None else heads.rows)
        self.memory = None if heads is None else heads.memory(self.cache)
        self.root = torch.zeros(slots, dtype=torch.int64, device=backbone.device)
        self.hidden = torch.zeros(slots, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device)
        self._start = [self.root, self.hidden, *([] if self.memory is None else [self.memory.states])]
        self._backup = [torch.empty_like(each) for each in self._start]
        # What flows between devices can't be captured in the graph of one.
        self.graphs = Graphs(None) if backbone.spread else Graphs.on(backbone.device)

    def prefill(self, slot: int, prompt: Sequence[int]) -> tuple[int, float]:
        """Fills ``slot`` with a prompt; returns the likeliest first token and the entropy (nats) that it came from."""
        self.cache.rewind(slot)
        self.read(slot, prompt)
        return self.begin(slot, self.logits(slot), Sampler(GREEDY))

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Restores what a step starts from if an exception ends it.

        What it has written to the cache lies after the committed rows and is written again by the next step.
        """
        for backup, each in zip(self._backup, self._start, strict=True):
            backup.copy_(each)
        try:
            yield
        except BaseException:
            for backup, each in zip(self._backup, self._start, strict=True):
                each.copy_(backup)
            self.cache.restore_lengths()
            raise

    @torch.inference_mode()
    def swap(self, one: int, other: int) -> None:
        """Exchanges all that two slots hold; runs out of memory only before anything has moved."""
        exchanged = [each[[other, one]] for each in self._start]
        self.cache.swap(one, other)
        for each, rows in zip(self._start, exchanged, strict=True):
            each[one].copy_(rows[0])
            each[other].copy_(rows[1])

    @torch.inference_mode()
    def is_finite(self, slot: int) -> bool:
        """Whether what was read into a slot are numbers: the last token has attended to all before it."""
        return bool(self.hidden[slot].isfinite().all())

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int]) -> None:
        """Appends a part of a prompt to ``slot``."""
        states = self.backbone.prefill(tokens, slot, self.cache)
        self.hidden[slot] = states[-1]
        if self.memory is not None:
            self.memory.read(slot, states, tokens)

    @torch.inference_mode()
    def logits(self, slot: int) -> torch.Tensor:
        """The model's logits ``[vocab_size]`` behind what was read."""
        return self.backbone.logits(self.hidden[slot])

    @torch.inference_mode()
    def begin(self, slot: int, logits: torch.Tensor, sampler: Sampler) -> tuple[int, float]:
        """Chooses the first root from the ``logits`` behind the prompt; with the entropy (nats) of that choice."""
        self.root[slot] = root = choose_first(logits, sampler)
        if self.memory is not None:
            self.memory.begin(slot, root)
        return int(root), float(entropy(logits))

    def rows(self, slots: tuple[int, ...]) -> tuple[int, ...]:
        """The slots of a step's batch rows: these, and behind them idle ones where graphs are captured for few sizes.

        What heads with a memory do is never captured, and they would write into idle slots.
        """
        if not self.graphs.active or self.memory is not None:
            return slots
        others = [slot for slot in range(len(self.cache.lengths)) if slot not in slots]
        return (*slots, *others[: rounded_rows(len(slots)) - len(slots)])

    def draft(self, slots: tuple[int, ...], trees: TreeBatch) -> tuple[torch.Tensor]:
        """The trees' tokens ``[batch, width]``, the roots first."""
        rows = self.cache.table.index(slots)
        root = self.root[rows]
        if self.heads is None or trees.max_depth == 0:
            return (root[:, None],)
        if self.memory is not None:
            return (self.memory.fill(slots, root, trees).tokens,)
        return (self.heads.fill(self.hidden[rows], root, trees).tokens,)

    def growth(self, slots: Sequence[int], watch: Stopwatch) -> Growth:
        """Begins to draft behind the slots' roots, level by level; what happens between levels is the policy's time."""
        assert self.heads is not None
        rows = self.cache.table.index(tuple(slots))
        if self.memory is not None:
            return _Watched(self.memory.growth(tuple(slots), self.root[rows]), watch)
        return _Watched(LevelByLevel(self.heads, self.hidden[rows], self.root[rows]), watch)

    def grown(self, slots: tuple[int, ...], trees: TreeBatch, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Trees that were filled while they grew: tokens ``[batch, width]``, the roots first, 0 on padding."""
        idle: list[list[int]] = [[]] * (len(slots) - len(tokens))
        rows = [[0, *own, *[0] * (trees.width - 1 - len(own))] for own in [*tokens, *idle]]
        filled = torch.tensor(rows, device=self.root.device)
        filled[:, 0] = self.root[self.cache.table.index(slots)]
        return filled

    def keep(self, slots: tuple[int, ...], hidden: torch.Tensor, accepted: Accepted) -> tuple[()]:
        """Keeps the accepted paths: their rows in the cache, and what the next step starts from.

        ``hidden [batch, width, hidden_size]`` are the trees' decoder states. Idle rows change nothing of their slots.
        """
        rows, busy = self.cache.table.index(slots), accepted.counts > 0
        last = accepted.nodes.gather(1, (accepted.counts[:, None] - 1).clamp(min=0))[:, 0]
        self.cache.keep(slots, accepted.nodes, accepted.counts)
        self.root[rows] = torch.where(busy, accepted.root, self.root[rows])
        behind = hidden[torch.arange(len(rows), device=rows.device), last]
        self.hidden[rows] = torch.where(busy[:, None], behind, self.hidden[rows])
        return ()

    def remember(
        self, slots: tuple[int, ...], tokens: torch.Tensor, hidden: torch.Tensor, accepted: Accepted
    ) -> Accepted:
        """Behind :meth:`keep`: the heads take in what was accepted, if they remember anything.

        ``tokens [batch, width]`` and ``hidden [batch, width, hidden_size]`` are the trees'. The report of what is
        returned tells of heads' states that are not numbers, too.
        """
        if self.memory is None:
            return accepted
        nodes, last = accepted.nodes, accepted.counts[:, None] - 1
        behind = tokens.gather(1, nodes).roll(-1, dims=1).scatter(1, last, accepted.root[:, None])
        path = hidden.gather(1, nodes[..., None].expand(-1, -1, hidden.shape[-1]))
        self.memory.extend(slots, path, behind, accepted.counts)
        return accepted.checked(self.memory.states[self.cache.table.index(slots)])


class _Watched:
    """A growth whose levels are timed as drafting."""

    def __init__(self, growth: Growth, watch: Stopwatch) -> None:
        self.num_heads = growth.num_heads
        self._growth, self._watch = growth, watch

    def next(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._watch.mark("policy")
        guessed = self._growth.next(parents, count)
        self._watch.mark("draft")
        return guessed
