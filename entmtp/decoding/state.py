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
from entmtp.heads.interface import AcceptedPaths, Expansion
from entmtp.models.backbone import Backbone
from entmtp.models.cache import NO_DRAFT_CACHE, TreeCache
from entmtp.policies.signals import entropy
from entmtp.trees.batch import TreeBatch, rounded_rows


class DecodingState:
    """Requests in the slots of a cache; all memory is allocated at construction.

    Attributes:
        root: ``[slots]`` the token that the model chose last.
        read_hidden: ``[slots, hidden_size]`` the decoder state of the last prompt token that was read.
        capacity: rows of each slot for a text and a tree; the heads may have more of their own.
        cache: keys and values of everything before the root.
        drafter: what drafts for the slots; None without heads.
        graphs: what the parts of a step run through.
    """

    def __init__(self, backbone: Backbone, heads: DraftHeads | None, slots: int, capacity: int) -> None:
        self.backbone = backbone
        self.heads = heads
        self.capacity = capacity
        self.cache: TreeCache = backbone.new_cache(
            slots, capacity, NO_DRAFT_CACHE if heads is None else heads.cache_layout
        )
        self.drafter = None if heads is None else heads.drafter(self.cache)
        self.root = torch.zeros(slots, dtype=torch.int64, device=backbone.device)
        self.read_hidden = torch.zeros(slots, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device)
        self._start = [self.root, self.read_hidden, *([] if self.drafter is None else [self.drafter.states])]
        self._backup = [torch.empty_like(each) for each in self._start]
        # What flows between devices can't be captured in the graph of one.
        self.graphs = Graphs(None) if backbone.is_multi_device else Graphs.on(backbone.device)

    def prefill(self, slot: int, prompt: Sequence[int]) -> tuple[int, float]:
        """Fills ``slot`` with a prompt; returns the likeliest first token and the entropy (nats) that it came from."""
        self.cache.truncate(slot)
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
            self.cache.reset_device_lengths()
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
        return bool(self.read_hidden[slot].isfinite().all())

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int]) -> None:
        """Appends a part of a prompt to ``slot``."""
        states = self.backbone.prefill(tokens, slot, self.cache)
        self.read_hidden[slot] = states[-1]
        if self.drafter is not None:
            self.drafter.prefill(slot, states, tokens)

    @torch.inference_mode()
    def logits(self, slot: int) -> torch.Tensor:
        """The model's logits ``[vocab_size]`` behind what was read."""
        return self.backbone.logits(self.read_hidden[slot])

    @torch.inference_mode()
    def begin(self, slot: int, logits: torch.Tensor, sampler: Sampler) -> tuple[int, float]:
        """Chooses the first root from the ``logits`` behind the prompt; with the entropy (nats) of that choice."""
        self.root[slot] = root = choose_first(logits, sampler)
        if self.drafter is not None:
            self.drafter.start(slot, root)
        return int(root), float(entropy(logits))

    def rows(self, slots: tuple[int, ...]) -> tuple[int, ...]:
        """The slots of a step's batch rows: these, and behind them idle ones where graphs are captured for few sizes.

        A drafter that can't be captured would write into idle slots.
        """
        if not self.graphs.active or not self.drafts_in_graphs:
            return slots
        others = [slot for slot in range(len(self.cache.lengths)) if slot not in slots]
        return (*slots, *others[: rounded_rows(len(slots)) - len(slots)])

    def draft(self, slots: tuple[int, ...], trees: TreeBatch) -> tuple[torch.Tensor]:
        """The trees' tokens ``[batch, width]``, the roots first."""
        root = self.root[self.cache.table.index(slots)]
        if self.drafter is None or trees.max_depth == 0:
            return (root[:, None],)
        return (self.drafter.draft(slots, root, trees).tokens,)

    def expand(self, slots: Sequence[int], watch: Stopwatch) -> Expansion:
        """Begins to draft after the slots' roots, level by level; what happens between levels is the policy's time."""
        assert self.drafter is not None
        root = self.root[self.cache.table.index(tuple(slots))]
        return _TimedExpansion(self.drafter.expand(tuple(slots), root), watch)

    def drafted(self, slots: tuple[int, ...], trees: TreeBatch, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Trees that were filled while they were expanded: tokens ``[batch, width]``, the roots first, 0 on padding."""
        idle: list[list[int]] = [[]] * (len(slots) - len(tokens))
        rows = [[0, *own, *[0] * (trees.width - 1 - len(own))] for own in [*tokens, *idle]]
        filled = torch.tensor(rows, device=self.root.device)
        filled[:, 0] = self.root[self.cache.table.index(slots)]
        return filled

    def commit(
        self, slots: tuple[int, ...], tokens: torch.Tensor, hidden: torch.Tensor, accepted: Accepted
    ) -> tuple[()]:
        """Commits the accepted paths: their rows in the cache, and what the next step starts from.

        ``tokens [batch, width]`` and ``hidden [batch, width, hidden_size]`` are the trees'. Idle rows change nothing of
        their slots.
        """
        rows = self.cache.table.index(slots)
        self.cache.commit(slots, accepted.nodes, accepted.counts)
        self.root[rows] = torch.where(accepted.counts > 0, accepted.root, self.root[rows])
        if self.drafter is not None and self.drafts_in_graphs:
            self.drafter.append(slots, _paths(tokens, hidden, accepted))
        return ()

    def append(
        self, slots: tuple[int, ...], tokens: torch.Tensor, hidden: torch.Tensor, accepted: Accepted
    ) -> Accepted:
        """After :meth:`commit`: a drafter that can't be captured takes in what was accepted.

        The report of what is returned tells of its states that are not numbers, too.
        """
        if self.drafter is None or self.drafts_in_graphs:
            return accepted
        self.drafter.append(slots, _paths(tokens, hidden, accepted))
        return accepted.checked(self.drafter.states[self.cache.table.index(slots)])

    @property
    def drafts_in_graphs(self) -> bool:
        """Whether drafting may be captured: without a drafter there is nothing that could not."""
        return self.drafter is None or self.drafter.is_capturable


def _paths(tokens: torch.Tensor, hidden: torch.Tensor, accepted: Accepted) -> AcceptedPaths:
    return AcceptedPaths(tokens, hidden, accepted.nodes, accepted.counts, accepted.root)


class _TimedExpansion:
    """An expansion whose levels are timed as drafting."""

    def __init__(self, expansion: Expansion, watch: Stopwatch) -> None:
        self.num_heads = expansion.num_heads
        self._expansion, self._watch = expansion, watch

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._watch.mark("policy")
        guessed = self._expansion.next_level(parents, count)
        self._watch.mark("draft")
        return guessed
