"""Sampling over trees: seeds, streams, penalties and ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from entmtp.decoding import acceptance, sampling
from entmtp.decoding.sampling import GREEDY, Sampler, _draw, choose_first_token, choose_tokens
from entmtp.decoding.sequence import bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.decoding.warpers import Filters
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.settings import SamplingParams
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.sampled_texts import FREE, POLICIES, PROMPT, SHAPED
from tests.helpers.small_cases import SMALL_VOCAB


@pytest.mark.parametrize("params", [FREE, SHAPED, SamplingParams(presence_penalty=1.0, frequency_penalty=0.5)])
def test_one_seed_writes_one_text_with_every_policy_and_company(
    params: SamplingParams, backbone: Backbone, heads: DraftHeads
) -> None:
    def text(policy: Policy, seeds: Sequence[int]) -> list[int]:
        state = DecodingState(backbone, heads, len(seeds), capacity=120)
        requests = []
        for slot, seed in enumerate(seeds):
            state.cache.truncate(slot)
            state.prefill_chunk(slot, PROMPT)
            sampler = Sampler(params.model_copy(update={"seed": seed}))
            sampler.observe_prompt(PROMPT, SMALL_VOCAB, backbone.device)
            root, uncertainty = state.start(slot, state.next_logits(slot), sampler)
            requests.append(bare_sequence(slot, policy, root, uncertainty, sampler))
        while len(requests[0].tokens) < 30:
            decode_step(state, policy, requests)
        return requests[0].tokens[:30]

    alone = text(POLICIES["plain"], [7])
    for policy, company in itertools.product(POLICIES.values(), ([], [1, 2, 3])):
        assert text(policy, [7, *company]) == alone
    assert text(POLICIES["plain"], [8]) != alone


def test_answers_to_one_seed_differ_by_their_number() -> None:
    logits = torch.zeros(1000)
    first = [
        int(choose_first_token(logits, Sampler(SamplingParams(seed=1), answer_index=number))) for number in range(6)
    ]
    assert len(set(first)) == 6


@pytest.mark.parametrize("random_rows", [(), (0,), (2,), (0, 3), (1, 2), (0, 1, 2, 3)])
def test_only_random_rows_are_drawn_and_each_as_if_alone(
    random_rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(logits: torch.Tensor, filters: Filters, uniforms: torch.Tensor) -> torch.Tensor:
        drawn.append(len(logits))
        return _draw(logits, filters, uniforms)

    monkeypatch.setattr(sampling, "_draw", draw)
    chain, wide = Topology.of([(0,), (0, 0), (0, 0, 0)]), Topology.of([(0,), (1,)])
    trees = [chain, wide, wide, chain]
    logits = torch.randn(4, 4, SMALL_VOCAB, generator=torch.Generator().manual_seed(0))

    def sampler(row: int) -> Sampler:
        params = SamplingParams(temperature=1.5, top_k=3 + row, seed=row)
        return Sampler(params if row in random_rows else GREEDY, written=5 * row)

    chosen = choose_tokens(logits, TreeBatch.of(trees), [sampler(row) for row in range(4)])
    assert drawn == ([len(random_rows)] if random_rows else [])
    for row, tree in enumerate(trees):
        nodes = 1 + tree.nodes
        own = logits[row : row + 1, :nodes]
        alone = choose_tokens(own, TreeBatch.of([tree]), [sampler(row)])[0]
        assert torch.equal(chosen[row, :nodes], alone)
        if row not in random_rows:
            assert torch.equal(alone, own[0].argmax(-1))


FIRST_NUMBERS = {
    (0, 0): ("0x1.7a5d3204726c0p-7", "0x1.eeb1585ce5460p-3"),
    (1, 5): ("0x1.99038601fb0a9p-1", "0x1.584a1c391002ap-1"),
    (7, 1): ("0x1.c3d2b13f7efedp-1", "0x1.79e52f699b24ap-2"),
    (2**53, 0): ("0x1.966ae898ee710p-4", "0x1.223c5b9622e90p-5"),
    (2**62 + 1, 0): ("0x1.0f3ff482286b8p-1", "0x1.ab90d6aebe000p-7"),
    (2**63 - 1, 1): ("0x1.6c4b621fac380p-4", "0x1.aadd6f0afa95ap-2"),
}
"""The first two random numbers by seed and answer: stored seeds go on drawing the texts that they drew."""


@pytest.mark.parametrize(("seed", "number"), list(FIRST_NUMBERS))
def test_a_seed_draws_what_it_always_drew(seed: int, number: int) -> None:
    sampler = Sampler(SamplingParams(seed=seed), answer_index=number)
    assert tuple(sampler.uniform(at).hex() for at in (0, 1)) == FIRST_NUMBERS[seed, number]


def test_every_seed_of_64_bits_draws_numbers_of_its_own() -> None:
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    assert len({Sampler(SamplingParams(seed=seed)).uniform(0) for seed in seeds}) == len(seeds)


def test_every_prompt_and_answer_draws_from_a_stream_of_its_own() -> None:
    streams = list(itertools.product(range(20), range(20)))
    params = SamplingParams(seed=3)
    drawn = {Sampler(params, answer_index=number, prompt_index=prompt).uniform(0) for prompt, number in streams}
    assert len(drawn) == len(streams)


def test_penalties_count_what_was_written_and_what_stands_on_the_path(backbone: Backbone) -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={2: 3.0})
    sampler = Sampler(params)
    sampler.observe_prompt([0, 1], 4, backbone.device)
    sampler.observe_tokens([3, 3])
    paths = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    found = sampler.process_logits(torch.zeros(1, 4), paths, torch.tensor([3]), list)
    assert found[0].tolist() == pytest.approx([0.0, -0.75, 3.0, -(0.5 + 3 * 0.25)])


def test_an_end_is_forbidden_at_each_node_by_its_own_position() -> None:
    sampler = Sampler(SamplingParams(min_tokens=3), stop_ids=frozenset({1}))
    assert sampler.modifies_logits
    found = sampler.process_logits(torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([1, 2, 3]), list)
    assert (found[:, 1] == -torch.inf).tolist() == [True, True, False]
    sampler.observe_tokens([0, 0, 0])
    assert not sampler.modifies_logits


def test_typical_acceptance_accepts_what_medusa_would() -> None:
    logits = torch.full((1, 3, 4), -20.0)
    logits[0, 0] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    logits[0, 1:, 0] = 0.0
    trees = TreeBatch.of([Topology.of([(0,), (1,)])])
    sampler = Sampler(SamplingParams(acceptance="typical"))
    # Entropy 1.14 nats: the bound is min(0.09, 0.3 exp(-1.14)) = 0.09; token 2 passes, token 3 does not.
    for guessed, accepted in ((2, 2), (3, 1)):
        (outcome,) = acceptance.accept_sampled(torch.tensor([[1, guessed, 3]]), logits, trees, [sampler]).to_host()
        assert len(outcome.tokens) == accepted


def test_random_numbers_do_not_depend_on_when_they_are_requested() -> None:
    one, other = (Sampler(SamplingParams(seed=5)) for _ in range(2))
    assert [one.uniform(at) for at in (0, 1500, 3)] == [other.uniform(at) for at in (0, 1500, 3)]
    assert sampling._BLOCK < 1500
