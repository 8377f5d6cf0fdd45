from collections.abc import Sequence as GenericSequence
from itertools import accumulate

import pytest
from transformers import GenerationConfig

from entmtp.decoding.outputs import Completion
from entmtp.decoding.sequence import Sequence, bare_sequence
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.policies.base import Policy, RequestPolicy
from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.signals import Signals
from entmtp.policies.static import SequencePolicy, StaticPolicy
from entmtp.settings import SamplingParams
from entmtp.trees.published import published_order
from entmtp.trees.topology import Topology
from tests.helpers.small_cases import SMALL_VOCAB, single_engine, small_backbone, small_heads, small_prompt
from tests.helpers.tiny_models import CONTEXT, TREES, greedy, tiny_model

PLAIN = TREES["root"]
PUBLISHED = Topology.of([path for path in published_order() if max(path) < SMALL_VOCAB])
POLICIES: dict[str, Policy] = {
    "plain": StaticPolicy(PLAIN, 8),
    "chain": StaticPolicy(TREES["chain"], 8),
    "published": StaticPolicy(PUBLISHED, 8),
    "ladder": LadderPolicy(Ladder((0.8, 1.6), (PUBLISHED, TREES["wide"], PLAIN), 8), 0.05),
    "sequence": SequencePolicy([TREES["bushy"], PLAIN, TREES["chain"], TREES["wide"]], 8),
}


@pytest.fixture(scope="module", params=["hydra", "medusa"])
def heads(request: pytest.FixtureRequest, backbone: Backbone) -> DraftHeads:
    return small_heads(request.param, backbone)


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_output_is_the_models_own_greedy_text(name: str, seed: int, backbone: Backbone, heads: DraftHeads) -> None:
    prompt = small_prompt(9, seed)
    done = single_engine(backbone, heads, POLICIES[name]).generate(prompt, 60)
    assert done.tokens == greedy(backbone.model, prompt, 60)
    starts = list(accumulate((step.gained for step in done.steps), initial=0))
    assert [step.position for step in done.steps] == starts[:-1]
    assert starts[-2] < 60 <= starts[-1]
    if name == "published":
        assert done.tau > 1.1, "nothing was accepted: the case shows nothing"
    if name in ("ladder", "sequence"):
        assert len({step.topology for step in done.steps}) > 1


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_other_architectures_write_their_own_text_too(architecture: str) -> None:
    backbone = small_backbone(architecture)
    prompt = small_prompt(9)
    done = single_engine(backbone, small_heads("hydra", backbone), POLICIES["sequence"]).generate(prompt, 30)
    assert done.tokens == greedy(backbone.model, prompt, 30)


def test_a_step_without_heads_is_plain_decoding(backbone: Backbone) -> None:
    done = single_engine(backbone, None, POLICIES["plain"]).generate(small_prompt(5), 20)
    assert done.tokens == greedy(backbone.model, small_prompt(5), 20)
    assert (done.tau, done.drafted, len(done.steps)) == (1.0, 0, 20)


class PerRequest(RequestPolicy):
    """Each request its own tree: the state says which."""

    entropy_window = 8

    def start(self) -> list[Topology]:
        return []

    def choose_one(self, signals: Signals, state: list[Topology], limit: int) -> Topology:
        return state[signals.position % len(state)]


def running(
    backbone: Backbone,
    heads: DraftHeads,
    prompts: GenericSequence[GenericSequence[int]],
    trees: GenericSequence[list[Topology]],
    steps: int,
) -> list[Sequence]:
    """Sequences after ``steps`` steps in one batch."""
    state = DecodingState(backbone, heads, slots=len(prompts), capacity=200)
    requests = []
    for slot, (prompt, own) in enumerate(zip(prompts, trees, strict=True)):
        root, uncertainty = state.prefill(slot, prompt)
        sequence = bare_sequence(slot, PerRequest(), root, uncertainty)
        sequence.policy_state = own
        requests.append(sequence)
    for _ in range(steps):
        decode_step(state, PerRequest(), requests)
    return requests


def test_a_ragged_batch_equals_one_by_one(backbone: Backbone, heads: DraftHeads) -> None:
    prompts = [small_prompt(length, seed=length) for length in (3, 17, 9, 1)]
    trees = [[PUBLISHED], [PLAIN], [TREES["bushy"], PLAIN], [TREES["chain"], TREES["wide"], PUBLISHED]]
    together = running(backbone, heads, prompts, trees, steps=12)
    for number, request in enumerate(together):
        (alone,) = running(backbone, heads, [prompts[number]], [trees[number]], steps=12)
        assert request.tokens == alone.tokens
        assert [step.path for step in request.completion.steps] == [step.path for step in alone.completion.steps]
        assert [step.topology for step in request.completion.steps] == [
            step.topology for step in alone.completion.steps
        ]
        assert request.tokens == greedy(backbone.model, prompts[number], len(request.tokens))
        assert request.completion.steps[-1].signals.entropy == pytest.approx(
            alone.completion.steps[-1].signals.entropy, abs=1e-4
        )
    assert len(together[0].tokens) > 13, "the published tree must gain something"


@pytest.mark.parametrize("name", ["plain", "published"])
def test_it_ends_after_the_end_of_text_token_even_inside_a_step(name: str) -> None:
    backbone = small_backbone()
    prompt = small_prompt(9)
    text = greedy(backbone.model, prompt, 60)
    heads = small_heads("hydra", backbone)
    for eos in sorted(set(text)):
        backbone.model.generation_config = GenerationConfig(eos_token_id=[eos, 999], pad_token_id=0)
        done = single_engine(backbone, heads, POLICIES[name]).generate(prompt, 60)
        assert done.tokens == text[: text.index(eos) + 1]
        assert done.tokens == greedy(backbone.model, prompt, 60)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_it_ends_at_the_requested_number_of_tokens(count: int, backbone: Backbone, heads: DraftHeads) -> None:
    text = greedy(backbone.model, small_prompt(9), 7)
    assert single_engine(backbone, heads, POLICIES["published"]).generate(small_prompt(9), count).tokens == text[:count]


def test_the_stream_is_the_completion_in_chunks(backbone: Backbone, heads: DraftHeads) -> None:
    engine = single_engine(backbone, heads, POLICIES["published"])
    streamed = Completion()
    params = SamplingParams(temperature=0.0, max_tokens=40)
    chunks = [progress.tokens for progress in engine.stream(small_prompt(9), params, streamed)]
    assert (
        [token for chunk in chunks for token in chunk] == streamed.tokens == engine.generate(small_prompt(9), 40).tokens
    )
    assert len(chunks) == len(streamed.steps)
    assert all(chunks)
    assert 0 < streamed.prefill_seconds <= streamed.seconds


def test_a_second_request_knows_nothing_of_the_first(backbone: Backbone, heads: DraftHeads) -> None:
    engine = single_engine(backbone, heads, POLICIES["ladder"])
    engine.generate(small_prompt(60, seed=5), 60)
    again = engine.generate(small_prompt(9), 40)
    fresh = single_engine(backbone, heads, POLICIES["ladder"]).generate(small_prompt(9), 40)
    assert again.tokens == fresh.tokens
    assert [step.topology for step in again.steps] == [step.topology for step in fresh.steps]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_last_step_may_guess_past_the_window(architecture: str) -> None:
    backbone = small_backbone(architecture)
    prompt = small_prompt(CONTEXT - 20)
    done = single_engine(backbone, small_heads("hydra", backbone), POLICIES["published"]).generate(prompt, 20)
    assert done.tokens == greedy(backbone.model, prompt, 20)


def test_the_largest_tree_fits_the_cache(backbone: Backbone) -> None:
    ranks = range(SMALL_VOCAB)
    everything = [(one,) for one in ranks] + [(one, two) for one in ranks for two in ranks]
    widest = Topology.of((everything + [(one, two, 0) for one in ranks for two in ranks])[:255])
    heads = small_heads("hydra", backbone)
    done = single_engine(backbone, heads, StaticPolicy(widest, 8)).generate(small_prompt(CONTEXT - 4), 4)
    assert done.tokens == greedy(backbone.model, small_prompt(CONTEXT - 4), 4)


@pytest.mark.parametrize(
    ("prompt", "count", "said"),
    [
        ([], 5, "prompt: it has no tokens"),
        ([1], 0, "max_new_tokens: 0 is not accepted"),
        ([1], -3, "max_new_tokens: -3 is not accepted"),
        ([1] * (CONTEXT - 4), 5, f"{CONTEXT - 4} tokens and 5 new ones exceed the context of {CONTEXT}"),
    ],
)
def test_a_request_that_cannot_be_served_is_rejected(
    prompt: list[int], count: int, said: str, backbone: Backbone
) -> None:
    with pytest.raises(EntMTPError, match=said):
        single_engine(backbone, None, POLICIES["plain"]).generate(prompt, count)


def test_a_tree_that_the_heads_cannot_reach_names_its_path(backbone: Backbone, heads: DraftHeads) -> None:
    deep = Topology.of([(0,) * depth for depth in range(1, 6)])
    with pytest.raises(EntMTPError, match=r"path \(0, 0, 0, 0, 0\) has depth 5"):
        single_engine(backbone, heads, StaticPolicy(deep, 8)).generate(small_prompt(4), 5)


def test_a_plain_step_draws_on_the_same_model_as_before_heads_came(heads: DraftHeads) -> None:
    """Attaching heads leaves the model untouched."""
    fresh = build_backbone(tiny_model("llama", vocab_size=SMALL_VOCAB))
    before = greedy(fresh.model, small_prompt(9), 30)
    small_heads(heads.kind, fresh)
    assert greedy(fresh.model, small_prompt(9), 30) == before
