"""Device state of running requests between steps, so that a step needs nothing from the host but its trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch

from entmtp.decoding.acceptance import Accepted, accept_greedy, accept_greedy_triton
from entmtp.decoding.graphs import Graphs
from entmtp.decoding.sampling import GREEDY, Sampler, choose_first_token
from entmtp.decoding.timers import Stopwatch
from entmtp.heads.base import DraftHeads
from entmtp.heads.interface import AcceptedPaths, Drafter, EditableExpansion, Expansion
from entmtp.models.backbone import Backbone
from entmtp.models.cache import NO_DRAFT_CACHE, DraftCacheLayout, KvRange, TreeCache
from entmtp.models.kernels.choices import CHOICES
from entmtp.models.kernels.triton.ancestor_bits import MAX_NODES
from entmtp.policies.signals import entropy
from entmtp.trees.batch import ROUNDED_WIDTHS, TreeBatch, rounded_rows

NewCache: TypeAlias = Callable[[int, int, DraftCacheLayout], TreeCache]
"""Makes a cache for so many slots with so many rows each, and this draft cache."""


class DecodingState:
    """State of the requests in the slots of a cache. All memory is allocated at construction.

    Attributes:
        root: ``[slots]`` the token that the model chose last, whose keys and values are not in the cache yet.
        last_hidden: ``[slots, hidden_size]`` the last prompt token's hidden state.
        capacity: cache rows of each slot for a text and a tree; the heads may have more of their own.
        cache: keys and values of all tokens before the root.
        drafter: drafts for the slots; None without heads.
        feature_layers: decoder layers whose inputs the heads read, none where they read the final states.
        graphs: runs the parts of a step.
    """

    def __init__(
        self, backbone: Backbone, heads: DraftHeads | None, slots: int, capacity: int, new_cache: NewCache | None = None
    ) -> None:
        """Allocate the memory; ``new_cache`` makes the cache instead of :meth:`Backbone.new_cache`."""
        self.backbone = backbone
        self.heads = heads
        self.capacity = capacity
        layout = NO_DRAFT_CACHE if heads is None else heads.cache_layout
        self.cache: TreeCache = (new_cache or backbone.new_cache)(slots, capacity, layout)
        self.drafter = None if heads is None else heads.drafter(self.cache)
        self.feature_layers = () if heads is None else heads.feature_layers
        self.root = torch.zeros(slots, dtype=torch.int64, device=backbone.device)
        self.last_hidden = torch.zeros(slots, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device)
        self._step_inputs = [self.root, self.last_hidden, *([] if self.drafter is None else [self.drafter.states])]
        self._backup = [torch.empty_like(each) for each in self._step_inputs]
        self.graphs = Graphs.on(backbone.devices)

    def prefill(self, slot: int, prompt: Sequence[int]) -> tuple[int, float]:
        """Read a whole prompt into ``slot``; returns the likeliest first token and the entropy (nats)."""
        self.cache.truncate(slot)
        self.prefill_chunk(slot, prompt)
        return self.start(slot, self.next_logits(slot), Sampler(GREEDY))

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Restore the state from before the step if an exception ends it.

        Cache rows that the step has written lie after the committed ones, and the next step overwrites them.
        """
        self._back_up()
        try:
            yield
        except BaseException:
            for backup, each in zip(self._backup, self._step_inputs, strict=True):
                each.copy_(backup)
            self.cache.reset_device_lengths()
            raise

    def _keep_caught_up(self, drafter: Drafter) -> None:
        """Keep what a drafter has caught up with even if the step fails: it does that once."""
        if drafter.catches_up:
            self._back_up()

    def _back_up(self) -> None:
        for backup, each in zip(self._backup, self._step_inputs, strict=True):
            backup.copy_(each)

    @torch.inference_mode()
    def swap(self, one: int, other: int) -> None:
        """Swap the contents of two slots; can run out of memory only before anything has moved."""
        swapped = [each[[other, one]] for each in self._step_inputs]
        self.cache.swap(one, other)
        for each, pair in zip(self._step_inputs, swapped, strict=True):
            each[one].copy_(pair[0])
            each[other].copy_(pair[1])

    @torch.inference_mode()
    def is_finite(self, slot: int) -> bool:
        """Whether the prompt's states in a slot are finite. The last token suffices: it attends to all before it."""
        return bool(self.last_hidden[slot].isfinite().all())

    @torch.inference_mode()
    def prefill_chunk(self, slot: int, tokens: Sequence[int]) -> torch.Tensor:
        """Append a part of a prompt to ``slot``; returns its decoder states ``[len(tokens), hidden_size]``."""
        states = self.backbone.prefill(tokens, slot, self.cache, self.feature_layers)
        self.last_hidden[slot] = states.hidden[-1]
        if self.drafter is not None:
            self.drafter.prefill(slot, states.features, tokens)
        return states.hidden

    @torch.inference_mode()
    def next_logits(self, slot: int) -> torch.Tensor:
        """Logits ``[vocab_size]`` for the token after the prompt."""
        return self.backbone.logits(self.last_hidden[slot])

    @torch.inference_mode()
    def start(self, slot: int, logits: torch.Tensor, sampler: Sampler) -> tuple[int, float]:
        """Choose the first root from the ``logits`` after the prompt; returns it with their entropy (nats)."""
        self.root[slot] = root = choose_first_token(logits, sampler)
        if self.drafter is not None:
            self.drafter.start(slot, root)
        return int(root), float(entropy(logits))

    def batch_slots(self, slots: tuple[int, ...]) -> tuple[int, ...]:
        """Slots of a step's batch rows: ``slots``, padded with idle ones so that graphs are captured for few sizes.

        There is no padding for a drafter that can't be captured, since it would write into the idle slots.
        """
        if not self.graphs.active or not self.drafts_in_graphs:
            return slots
        others = [slot for slot in range(len(self.cache.lengths)) if slot not in slots]
        return (*slots, *others[: rounded_rows(len(slots)) - len(slots)])

    def draft(self, slots: tuple[int, ...], trees: TreeBatch) -> tuple[torch.Tensor]:
        """Draft the trees' tokens ``[batch, width]``, the roots first."""
        root = self.root[self.cache.table.index(slots)]
        if self.drafter is None or trees.max_depth == 0:
            return (root[:, None],)
        drafted = self.drafter.draft(slots, root, trees)
        self._keep_caught_up(self.drafter)
        return (drafted.tokens,)

    def expand(self, slots: Sequence[int], watch: Stopwatch) -> EditableExpansion:
        """Start to draft after the slots' roots, level by level; the time between levels counts as the policy's."""
        assert self.drafter is not None
        root = self.root[self.cache.table.index(tuple(slots))]
        expansion = self.drafter.expand(tuple(slots), root)
        self._keep_caught_up(self.drafter)
        return _TimedExpansion(expansion, watch)

    def fill_trees(self, slots: tuple[int, ...], trees: TreeBatch, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Tokens ``[batch, width]`` of trees that were drafted while they were expanded: roots first, 0 on padding."""
        idle: list[list[int]] = [[]] * (len(slots) - len(tokens))
        batch_rows = [[0, *own, *[0] * (trees.width - 1 - len(own))] for own in [*tokens, *idle]]
        filled = torch.tensor(batch_rows, device=self.root.device)
        filled[:, 0] = self.root[self.cache.table.index(slots)]
        return filled

    def verify(
        self, tokens: torch.Tensor, kv_range: KvRange, trees: TreeBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the model over the trees' ``tokens [batch, width]``.

        Returns the nodes' logits, their decoder states, and the features that the heads read, each ``[batch, width,
        ...]``. Where parts are captured they are in memory that all steps share.
        """
        logits, states = self.backbone.verify(tokens, trees, kv_range, self.cache, self.feature_layers)
        share = partial(self.graphs.to_shared_buffer, usual_rows=len(self.root) * ROUNDED_WIDTHS[-1])
        hidden = share("hidden", states.hidden)
        features = hidden if states.features is states.hidden else share("features", states.features)
        return share("logits", logits), hidden, features

    def accept_greedy(
        self, tokens: torch.Tensor, logits: torch.Tensor, hidden: torch.Tensor, trees: TreeBatch
    ) -> Accepted:
        """Accept the longest greedy path of each tree; the report covers whether ``hidden`` is finite."""
        if CHOICES[self.backbone.kernels].is_triton and trees.width <= MAX_NODES:
            return accept_greedy_triton(tokens, logits, hidden, trees)
        return accept_greedy(tokens, logits, trees).with_finite_check(hidden)

    def commit(
        self, slots: tuple[int, ...], tokens: torch.Tensor, features: torch.Tensor, accepted: Accepted
    ) -> tuple[()]:
        """Commit the accepted paths: their cache rows, the next roots and the drafter's states.

        ``tokens [batch, width]`` and ``features [batch, width, feature_size]`` belong to the trees. The slots of idle
        batch rows are not changed.
        """
        index = self.cache.table.index(slots)
        self.cache.commit(slots, accepted.nodes, accepted.counts)
        padded = self.graphs.active  # else batch_slots() adds no idle rows
        root = torch.where(accepted.counts > 0, accepted.root, self.root[index]) if padded else accepted.root
        self.root[index] = root
        if self.drafter is not None and self.drafts_in_graphs:
            self.drafter.append(slots, _paths(tokens, features, accepted, padded))
        return ()

    def append(
        self, slots: tuple[int, ...], tokens: torch.Tensor, features: torch.Tensor, accepted: Accepted
    ) -> Accepted:
        """Append the accepted paths to a drafter that can't be captured, after :meth:`commit`.

        The returned report also covers whether the drafter's states are finite.
        """
        if self.drafter is None or self.drafts_in_graphs:
            return accepted
        self.drafter.append(slots, _paths(tokens, features, accepted, padded=False))
        states = self.drafter.states[self.cache.table.index(slots)]
        return accepted.with_finite_check_fused(states) if self.is_fused else accepted.with_finite_check(states)

    @property
    def levels(self) -> int:
        """Levels of nodes that the heads can draft."""
        return 0 if self.heads is None else self.heads.num_heads

    @property
    def is_fused(self) -> bool:
        """Whether fused kernels run, which graphs can't capture."""
        return CHOICES[self.backbone.kernels].fuses and not self.graphs.active

    @property
    def drafts_in_graphs(self) -> bool:
        """Whether drafting may be captured; True without a drafter."""
        return self.drafter is None or self.drafter.is_capturable


def _paths(tokens: torch.Tensor, features: torch.Tensor, accepted: Accepted, padded: bool) -> AcceptedPaths:
    return AcceptedPaths(
        tokens, features, accepted.nodes, accepted.counts, accepted.root, last=accepted.last, padded=padded
    )


class _TimedExpansion(Expansion):
    """An expansion whose levels are timed as drafting."""

    def __init__(self, expansion: EditableExpansion, watch: Stopwatch) -> None:
        self.num_heads = expansion.num_heads
        self._expansion, self._watch = expansion, watch

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._watch.mark("policy")
        guessed = self._expansion.next_level(parents, count)
        self._watch.mark("draft")
        return guessed

    def estimated_odds(self) -> torch.Tensor | None:
        self._watch.mark("policy")
        odds = self._expansion.estimated_odds()
        self._watch.mark("draft")
        return odds

    def replace(self, tokens: torch.Tensor) -> None:
        self._expansion.replace(tokens)
