"""Expansion under grammars: what the policies are shown, and how long a chain is verified."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from entmtp.decoding.constrained_drafts import _forced_width, _with_forced
from entmtp.decoding.constrained_expansion import FORBIDDEN, ConstrainedExpansion
from entmtp.decoding.grammars.compiler import GrammarCompiler
from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.grammars.vocabulary import GrammarVocabulary
from entmtp.heads.interface import EditableExpansion
from entmtp.structured import Structured
from tests.helpers.constrained_texts import letter_tokenizer
from tests.helpers.small_cases import small_cost

LETTERS = "abcdefgh"
COMPILER = GrammarCompiler(lambda: GrammarVocabulary.of(letter_tokenizer(LETTERS), len(LETTERS)))


class Alphabet(EditableExpansion):
    """Heads that guess the letters in their order, after every parent."""

    num_heads = 3

    def __init__(self) -> None:
        self.replaced: list[list[list[int]]] = []
        self.parents: list[list[int]] = []

    def next_level(self, parents: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.parents.append(list(parents))
        guesses = torch.arange(min(count, len(LETTERS))).expand(len(parents), -1)
        return guesses, -guesses.float()

    def replace(self, tokens: torch.Tensor) -> None:
        self.replaced.append(tokens.tolist())


def constraint_of(regex: str) -> Constraint:
    constraint = Constraint(COMPILER.compile(Structured(regex=regex)), "regex", frozenset(), 0, begins_text=True)
    constraint.advance([0])
    return constraint


def test_the_next_likeliest_allowed_guesses_take_the_place_of_forbidden_ones() -> None:
    heads = Alphabet()
    expansion = ConstrainedExpansion(heads, [constraint_of("a[ceg](bd|b|d)[ah]"), None])
    tokens, log_probs = expansion.next_level([0, 1], 2)
    assert tokens.tolist() == [[2, 4], [0, 1]]
    assert log_probs.tolist() == [[-2.0, -4.0], [0.0, -1.0]]
    tokens, log_probs = expansion.next_level([1, 3], 3)
    assert tokens.tolist() == [[1, 3, 0], [0, 1, 2]]
    assert log_probs.tolist() == [[-1.0, -3.0, FORBIDDEN], [0.0, -1.0, -2.0]]
    tokens, log_probs = expansion.next_level([2], 2)  # a forbidden guess
    assert log_probs.tolist() == [[FORBIDDEN, FORBIDDEN]]
    assert expansion.allowed == [{(2,), (4,), (4, 1), (4, 3)}, {(0,), (1,), (1, 0), (1, 1), (1, 2)}]
    assert [len(level) for level in heads.replaced] == [2, 2, 1]
    assert heads.parents == [[0, 1], [1, 3], [2]]


def test_a_forced_token_is_the_only_guess_and_certain() -> None:
    expansion = ConstrainedExpansion(Alphabet(), [constraint_of("ahg[ab]")])
    tokens, log_probs = expansion.next_level([0], 2)
    assert (tokens.tolist(), log_probs.tolist()) == ([[7, 0]], [[0.0, FORBIDDEN]])
    tokens, log_probs = expansion.next_level([0], 2)
    assert (tokens[0].tolist(), log_probs[0].tolist()) == ([6, 0], [0.0, FORBIDDEN])


@pytest.mark.parametrize(
    ("nodes", "forced", "per_node", "width"),
    [
        ([0], [8], 1.0, 8),  # a node costs a twentieth of a plain step, and gains as much as one
        ([0], [8], 30.0, 0),
        ([0] * 8, [8, *[0] * 7], 30.0, 0),
        ([6, 0], [6, 0], 30.0, 6),  # the policy's own tree is as large
        ([0, 0], [8, 3], 15.0, 3),
    ],
)
def test_chains_are_cut_where_they_cost_more_than_they_gain(
    nodes: list[int], forced: list[int], per_node: float, width: int
) -> None:
    assert _forced_width(nodes, forced, small_cost(per_node)) == width


@pytest.mark.parametrize(("forced", "width"), [([5], 5), ([5, 3], 5), ([5, 3, 1], 3), ([5, 0, 0], 0)])
def test_without_costs_half_of_the_requests_decide(forced: list[int], width: int) -> None:
    assert _forced_width([0] * len(forced), forced, None) == width


@pytest.mark.parametrize(
    ("limit", "paths", "tokens"),
    [
        (1, [(0,)], [9]),
        (3, [(0,), (1,), (0, 0)], [9, 5, 8]),
        (9, [(0,), (1,), (0, 0), (0, 1), (1, 0)], [9, 5, 8, 4, 7]),
    ],
)
def test_a_chain_comes_first_within_a_limit(limit: int, paths: list[tuple[int, ...]], tokens: list[int]) -> None:
    others = [((0,), (5,)), ((2,), (9,)), ((0, 3), (5, 7)), ((2, 0), (9, 4))]
    choice = _with_forced(others, [9, 8], limit)
    assert (list(choice.topology.paths), choice.tokens) == (paths, tokens)


@pytest.mark.parametrize(("own", "nodes"), [(0, 32), (40, 63), (63, 63), (90, 90)])
def test_a_chain_makes_no_tree_that_an_engine_has_no_rows_for(own: int, nodes: int) -> None:
    others = [((rank,), (rank,)) for rank in range(own)]
    assert _with_forced(others, [99] * 32, 255).topology.nodes == nodes
