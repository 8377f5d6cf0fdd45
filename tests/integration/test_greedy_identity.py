"""On the bundled model every arm writes, token for token, what the model's own ``generate`` writes."""

from collections.abc import Mapping, Sequence

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entmtp import methods
from entmtp.decoding.measure_cost import step_cost
from entmtp.evaluation.run.arms import Foresight, Toolbox, lossless_arms, make_engine, transfer_suite, with_heads
from entmtp.evaluation.run.reference import first_difference
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.models.loading.load import encode_chat
from entmtp.persistent_paths import cache_folder
from entmtp.settings import EngineSettings
from entmtp.suites import MIXED, PAPER_SUITES, draw, load_suite
from entmtp.trees.bank import bundled_bank, load_bank
from tests.helpers.bundled_backbone import bundled_backbone
from tests.helpers.dflash_heads import dspark_heads
from tests.helpers.eagle3_heads import eagle3_heads
from tests.helpers.small_cases import traced
from tests.helpers.tiny_models import greedy, plain_logits

TIE = 1e-4
"""Top-2 logits this close may change places between two ways to compute the same sum."""

MADE = {"eagle3": eagle3_heads, "dflash": dspark_heads}
"""Heads with random weights, of kinds of which none are shipped."""
ARMS = with_heads(lossless_arms(), BUNDLED_KINDS)

Bundled = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Toolboxes = Mapping[str, Toolbox]


@pytest.fixture(scope="module")
def toolboxes(step_costs: None) -> Toolboxes:
    """What each suite's arms are made of, as it is shipped."""
    backbone = bundled_backbone()
    heads = {kind: load_heads(bundled_heads(kind), backbone) for kind in BUNDLED_KINDS}
    costs = {kind: step_cost(backbone, one, cache_folder(), print) for kind, one in heads.items()}
    banks = {suite: {kind: load_bank(bundled_bank(suite, kind)) for kind in BUNDLED_KINDS} for suite in PAPER_SUITES}
    mixed = {kind: load_bank(bundled_bank(MIXED, kind)) for kind in BUNDLED_KINDS}
    return {
        suite: Toolbox(
            backbone,
            heads,
            banks[suite],
            costs,
            {"entmtp-transfer": banks[transfer_suite(suite)], "entmtp-mixed": mixed},
        )
        for suite in PAPER_SUITES
    }


def differences(
    model: PreTrainedModel, ids: Sequence[int], tools: Toolbox, arms: Sequence[str], new_tokens: int
) -> list[str]:
    """One line per arm that leaves the model's own text where there is no tie."""
    text = greedy(model, ids, new_tokens)
    dynamic_run = make_engine("entmtp-dynamic", tools, EngineSettings.for_one()).generate(ids, new_tokens)
    foresight = Foresight(traced(tools.backbone, tools.heads["hydra"], ids, text), dynamic_run, "test")
    found = []
    for arm in arms:
        done = make_engine(arm, tools, EngineSettings.for_one(), foresight).generate(ids, new_tokens)
        place = first_difference(done.tokens, text)
        if place >= 0 and (margin := _margin(model, [*ids, *text[:place]])) >= TIE:
            found.append(f"{arm} at token {place}: the model's top two are {margin:.2g} apart")
    return found


def _margin(model: PreTrainedModel, ids: Sequence[int]) -> float:
    first, second = plain_logits(model, ids)[-1].topk(2).values.tolist()
    return float(first - second)


def test_shipped_banks_belong_to_the_shipped_heads(toolboxes: Toolboxes) -> None:
    for suite, tools in toolboxes.items():
        for kind, bank in tools.banks.items():
            assert bank.provenance.task == suite
            heads = tools.heads[kind]
            bank.check_heads(
                kind=kind,
                num_heads=heads.num_heads,
                model_fingerprint=tools.backbone.fingerprint,
                heads_fingerprint=heads.fingerprint,
                estimates_acceptance=heads.estimates_acceptance,
            )


def test_a_prompt_of_a_suite_is_answered_alike_by_every_arm(toolboxes: Toolboxes, bundled: Bundled) -> None:
    (prompt,) = draw(load_suite("gsm8k").prompts, 1, seed=1)
    assert differences(bundled[0], encode_chat(bundled[1], prompt.text), toolboxes["gsm8k"], ARMS, 32) == []


def test_the_end_of_text_comes_where_the_model_puts_it(toolboxes: Toolboxes, bundled: Bundled) -> None:
    ids = encode_chat(bundled[1], "What is the capital of France? Answer in one sentence.")
    tools = toolboxes["sharegpt"]
    done = make_engine("hydra", tools, EngineSettings.for_one()).generate(ids, 64)
    assert done.tokens == greedy(bundled[0], ids, 64)
    assert done.tokens[-1] in tools.backbone.eos_token_ids
    assert done.tau > 1.2, "the shipped heads must be right now and then"


@pytest.mark.slow
@pytest.mark.parametrize("suite", sorted(PAPER_SUITES))
def test_ten_prompts_of_each_suite_are_answered_alike_by_every_arm(
    suite: str, toolboxes: Toolboxes, bundled: Bundled
) -> None:
    """Forty prompts of 128 tokens over the four suites."""
    prompts = draw(load_suite(suite).prompts, 10, seed=0)
    assert len(prompts) == 10
    for prompt in prompts:
        ids = encode_chat(bundled[1], prompt.text)
        assert differences(bundled[0], ids, toolboxes[suite], ARMS, 128) == [], prompt.id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "arm"),
    [(kind, arm) for kind in MADE for arm in (*methods.of_family(kind), *methods.adaptive())],
)
def test_heads_that_guess_at_random_leave_the_text_as_it_is(
    kind: str, arm: str, toolboxes: Toolboxes, bundled: Bundled
) -> None:
    """Trees and costs are those of Hydra heads, so that much is drafted and nearly all rejected."""
    shipped = toolboxes["gsm8k"]
    bank, cost = shipped.banks["hydra"], shipped.costs["hydra"]
    sizes = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 128}
    heads = MADE[kind](shipped.backbone, feature_layers=[2, 15, 27], **sizes)
    tools = Toolbox(shipped.backbone, {kind: heads}, {kind: bank}, {kind: cost})
    for prompt in draw(load_suite("gsm8k").prompts, 2, seed=2):
        ids = encode_chat(bundled[1], prompt.text)
        engine = make_engine(arm, tools, EngineSettings.for_one())
        done = engine.generate(ids, 32)
        text = greedy(bundled[0], ids, 32)
        place = first_difference(done.tokens, text)
        assert place < 0 or _margin(bundled[0], [*ids, *text[:place]]) < TIE, prompt.id
        assert done.drafted
