"""Drafting under grammars: forbidden guesses make room for the next likeliest ones, and a grammar guesses itself.

Where a grammar leaves one token, its guess is certain. Such a *forced* chain after the root is verified as a whole,
whatever tree the policy chooses, and without any heads. Further down the tree a forced token is the only guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from entmtp.decoding.constrained_expansion import ConstrainedExpansion, Tokens
from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.sequence import Sequence as DecodedSequence
from entmtp.heads.interface import EditableExpansion, Expansion
from entmtp.policies.base import Choice, Policy
from entmtp.policies.signals import Signals
from entmtp.policies.step_cost import TreeCost, rounded_context
from entmtp.trees.batch import FILLED_SIZES
from entmtp.trees.topology import Path, Topology

MAX_FORCED = 32
"""Nodes of the longest forced chain of a step."""
MAX_VERIFIED = FILLED_SIZES[-1]
"""Nodes of a tree with a forced chain, unless the policy's own are more: every engine has cache rows for so many."""

Expand = Callable[[Sequence[int]], EditableExpansion]
"""Starts drafting after the roots of some of the step's requests."""


class StepDrafts:
    """Drafting of one step, as its requests limit it.

    Attributes:
        limits: size of the largest tree that a policy may choose for each request.
        constrained: whether some request is constrained.
    """

    constrained = False

    def __init__(self, sequences: Sequence[DecodedSequence], expand: Expand) -> None:
        self.limits = [sequence.node_limit for sequence in sequences]
        self._expand = expand

    def begin(self, drafting: Sequence[int]) -> Expansion:
        """Start drafting after the roots of some of the requests."""
        return self._expand(drafting)

    def complete(self, chosen: list[Choice], policy: Policy, signals: Sequence[Signals]) -> list[Choice]:
        """The trees to verify, in place of those that the policy has chosen."""
        return chosen


class ConstrainedDrafts(StepDrafts):
    """Drafting of a step in which some request is constrained."""

    constrained = True

    def __init__(self, sequences: Sequence[DecodedSequence], expand: Expand, levels: int) -> None:
        """``levels`` is the number of heads, which don't run where a grammar has more certain guesses than that."""
        super().__init__(sequences, expand)
        self._sequences = sequences
        self._constraints = [sequence.sampler.constraint for sequence in sequences]
        self._forced = [self._forced_after_root(at) for at in range(len(sequences))]
        for at, (constraint, forced) in enumerate(zip(self._constraints, self._forced, strict=True)):
            if len(forced) > levels or not _goes_on(constraint):
                self.limits[at] = 0
        self._allowed: dict[int, set[Tokens]] = {}

    def begin(self, drafting: Sequence[int]) -> Expansion:
        constraints = [self._constraints[at] for at in drafting]
        if not any(constraints):
            return self._expand(drafting)
        expansion = ConstrainedExpansion(self._expand(drafting), constraints)
        self._allowed |= dict(zip(drafting, expansion.allowed, strict=True))
        return expansion

    def complete(self, chosen: list[Choice], policy: Policy, signals: Sequence[Signals]) -> list[Choice]:
        """Trees of all requests, filled with tokens: without forbidden guesses, and with the forced chains."""
        if policy.is_undrafted:
            return chosen
        topologies, tokens = [choice.topology for choice in chosen], [choice.tokens for choice in chosen]
        if None in tokens:
            tokens = _fill(topologies, self.begin)
        verified = [
            self._verifiable(row, topology, own or [])
            for row, (topology, own) in enumerate(zip(topologies, tokens, strict=True))
        ]
        context = rounded_context([signal.context for signal in signals])
        cost = None if policy.cost is None else policy.cost.of_batch(len(chosen), context)
        width = _forced_width(list(map(len, verified)), list(map(len, self._forced)), cost)
        return [
            _with_forced(paths, forced[:width], sequence.node_limit) if forced else _to_choice(paths)
            for paths, forced, sequence in zip(verified, self._forced, self._sequences, strict=True)
        ]

    def _forced_after_root(self, at: int) -> list[int]:
        sequence, constraint = self._sequences[at], self._constraints[at]
        room = sequence.request.params.max_tokens - len(sequence.tokens) - 1
        limit = min(MAX_FORCED, sequence.node_limit, room)
        if constraint is None or not _goes_on(constraint) or limit < 1:
            return []
        try:
            return constraint.chain(limit)
        except Exception as error:  # of any type: it is caused by this request alone
            constraint.failure = error
            return []

    def _verifiable(self, row: int, topology: Topology, tokens: Sequence[int]) -> list[tuple[Path, Tokens]]:
        """Nodes of a policy's tree that may be verified, by ranks and by tokens."""
        allowed = None if self._constraints[row] is None else set(self._allowed.get(row, ()))
        paths: dict[Path, Tokens] = {(): ()}
        for path, token in zip(topology.paths, tokens, strict=True):
            if path[:-1] not in paths:
                continue
            named = (*paths[path[:-1]], token)
            if allowed is None:
                paths[path] = named
            elif named in allowed:
                allowed.remove(named)  # a guess that pads its level may have the same token
                paths[path] = named
        del paths[()]
        return list(paths.items())


def drafts_of(sequences: Sequence[DecodedSequence], expand: Expand, levels: int) -> StepDrafts:
    """Drafting of a step of these requests; ``levels`` is the number of heads."""
    if all(sequence.sampler.constraint is None for sequence in sequences):
        return StepDrafts(sequences, expand)
    return ConstrainedDrafts(sequences, expand, levels)


def _goes_on(constraint: Constraint | None) -> bool:
    return constraint is None or (constraint.failure is None and constraint.can_go_on)


def _fill(topologies: Sequence[Topology], begin: Callable[[Sequence[int]], Expansion]) -> list[list[int] | None]:
    """Tokens of trees of given topologies, drafted level by level; None for trees without nodes."""
    drafting = [row for row, topology in enumerate(topologies) if topology.nodes]
    if not drafting:
        return [None] * len(topologies)
    expansion = begin(drafting)
    tokens: list[list[int]] = [[] for _ in topologies]
    guess: dict[tuple[int, Path], int] = {(row, ()): number for number, row in enumerate(drafting)}
    for depth in range(max(topology.max_depth for topology in topologies)):
        paths = {
            (row, path): None
            for row, topology in enumerate(topologies)
            for path in topology.paths
            if len(path) == depth + 1
        }
        inner = list(dict.fromkeys((row, path[:-1]) for row, path in paths))
        ranks = 1 + max(path[-1] for _, path in paths)
        guessed, _ = expansion.next_level([guess[node] for node in inner], ranks)
        found, width, number = guessed.tolist(), guessed.shape[1], {node: at for at, node in enumerate(inner)}
        for row, path in paths:
            at = number[row, path[:-1]]
            guess[row, path] = at * width + path[-1]
            tokens[row].append(found[at][path[-1]])
    return list(tokens)


def _forced_width(nodes: Sequence[int], forced: Sequence[int], cost: TreeCost | None) -> int:
    """Length to which forced chains are verified, given the ``nodes`` of the policy's trees.

    All trees of a step are padded to the largest. A chain gets longer while that gains more tokens per
    millisecond. Without costs, a level of nodes is verified if half of the requests have a forced token there.
    """
    requests, longest, base = len(nodes), max(forced), max(nodes)
    if cost is None:
        return sorted(forced, reverse=True)[(requests - 1) // 2]
    best, width = 0.0, 0
    for length in range(longest + 1):
        tree = _chain(max(base, length))
        tokens = requests + sum(min(own, length) for own in forced)
        if (goodput := tokens / (cost(tree) - cost.draft(tree))) > best:
            best, width = goodput, length
    return width


@cache
def _chain(nodes: int) -> Topology:
    return Topology(tuple((0,) * depth for depth in range(1, nodes + 1)))


def _with_forced(nodes: Sequence[tuple[Path, Tokens]], forced: Sequence[int], limit: int) -> Choice:
    """Tree of a forced chain, and of as many of the other ``nodes`` as the limit and the cache's rows leave."""
    limit = min(limit, max(MAX_VERIFIED, len(nodes)))
    chain = [tuple(forced[:length]) for length in range(1, len(forced) + 1)]
    others = [tokens for _, tokens in nodes if tokens not in set(chain)]
    ranks: dict[Tokens, Path] = {(): ()}
    children: dict[Tokens, int] = {}
    for tokens in [*chain, *others][:limit]:
        if (parent := tokens[:-1]) in ranks:
            ranks[tokens] = (*ranks[parent], children.setdefault(parent, 0))
            children[parent] += 1
    del ranks[()]
    return _to_choice([(path, tokens) for tokens, path in ranks.items()])


def _to_choice(nodes: Sequence[tuple[Path, Tokens]]) -> Choice:
    ordered = sorted(nodes, key=lambda node: (len(node[0]), node[0]))
    return Choice(Topology(tuple(path for path, _ in ordered)), [tokens[-1] for _, tokens in ordered])
