from functools import cache, partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.models import backbone as module
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.cache import TreeCache
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import (
    CONTEXT,
    SUPPORTED,
    TREES,
    WINDOW,
    buffers,
    commit,
    nodes_on,
    plain_logits,
    random_tokens,
    tiny_model,
    verify,
)

every_model = pytest.mark.parametrize("model_type", SUPPORTED)
assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


@cache
def pair(model_type: str) -> tuple[PreTrainedModel, Backbone]:
    """Two models with the same weights: a plain one and a backbone."""
    return tiny_model(model_type), build_backbone(tiny_model(model_type))


def verified(
    backbone: Backbone, trees: list[Topology], slots: list[int], cache: TreeCache, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random node tokens ``[batch, width]`` and the logits that a tree pass gives them."""
    batch = TreeBatch.of(trees)
    tokens = torch.tensor([random_tokens(batch.width, seed + row) for row in range(len(trees))])
    return tokens, verify(backbone, tokens, batch, slots, cache)[0]


def check_paths(
    plain: PreTrainedModel, text: list[int], tree: Topology, tokens: torch.Tensor, logits: torch.Tensor
) -> None:
    """Check that every node of a tree after ``text`` has the logits of its own path run alone."""
    for node in range(tree.nodes + 1):
        path = tokens[nodes_on(tree, node)].tolist()
        assert_close(logits[node], plain_logits(plain, text + path)[-1])


@every_model
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_tree_in_one_pass_equals_every_path_run_alone(model_type: str, tree: Topology) -> None:
    plain, backbone = pair(model_type)
    prompt = random_tokens(3 * WINDOW + 1)
    cache = backbone.new_cache(1, CONTEXT)
    backbone.prefill(prompt, 0, cache)
    tokens, logits = verified(backbone, [tree], [0], cache, seed=5)
    check_paths(plain, prompt, tree, tokens[0], logits[0])


@every_model
def test_compaction_over_steps_equals_the_sequential_run_in_place(model_type: str) -> None:
    plain, backbone = pair(model_type)
    text = random_tokens(5)
    cache = backbone.new_cache(2, CONTEXT)
    backbone.prefill(text, 1, cache)
    addresses = [buffer.data_ptr() for buffer in buffers(cache)]
    # Each accepted leaf has siblings before it, so that every step but the first two moves rows.
    for step, (name, leaf) in enumerate([("root", 0), ("chain", 3), ("bushy", 8), ("wide", 4), ("bushy", 9)] * 2):
        tokens, logits = verified(backbone, [TREES[name]], [1], cache, seed=step)
        check_paths(plain, text, TREES[name], tokens[0], logits[0])
        accepted = nodes_on(TREES[name], leaf)
        commit(cache, [accepted])
        text += tokens[0, accepted].tolist()
        assert cache.lengths == [0, len(text)]
    assert [buffer.data_ptr() for buffer in buffers(cache)] == addresses


@every_model
@pytest.mark.parametrize("slots", [[3, 0, 2], [1, 2, 3]], ids=["scattered", "contiguous"])
def test_a_ragged_batch_equals_one_by_one(model_type: str, slots: list[int]) -> None:
    plain, backbone = pair(model_type)
    texts = [random_tokens(length, seed=length) for length in (1, 17, 9)]
    cache = backbone.new_cache(4, CONTEXT)
    for slot, text in zip(slots, texts, strict=True):
        backbone.prefill(text, slot, cache)
    for step, names in enumerate([("bushy", "root", "chain"), ("root", "wide", "bushy"), ("root", "root", "root")]):
        trees = [TREES[name] for name in names]
        tokens, logits = verified(backbone, trees, slots, cache, seed=10 * step)
        accepted = [nodes_on(tree, tree.nodes) for tree in trees]
        for row, (text, tree) in enumerate(zip(texts, trees, strict=True)):
            check_paths(plain, text, tree, tokens[row], logits[row])
            text += tokens[row, accepted[row]].tolist()
        commit(cache, accepted)


def test_a_released_slot_leaves_nothing_to_its_next_request() -> None:
    plain, backbone = pair("mistral")
    cache = backbone.new_cache(2, CONTEXT)
    backbone.prefill(random_tokens(40, seed=1), 0, cache)
    cache.truncate(0)
    text = random_tokens(7)
    backbone.prefill(text, 0, cache)
    tokens, logits = verified(backbone, [TREES["bushy"]], [0], cache, seed=3)
    check_paths(plain, text, TREES["bushy"], tokens[0], logits[0])


@every_model
@pytest.mark.parametrize("parts", [(30,), (1,), (16,), (9, 1, 20)], ids=str)
def test_chunked_and_padded_prefill_equals_the_plain_pass(
    model_type: str, parts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_CHUNK", 12)
    plain, backbone = pair(model_type)
    text = random_tokens(sum(parts))
    cache = backbone.new_cache(1, len(text))
    at, states = 0, []
    for part in parts:
        states.append(backbone.prefill(text[at : at + part], 0, cache).hidden)
        at += part
    assert cache.lengths == [len(text)]
    assert_close(backbone.logits(torch.cat(states)), plain_logits(plain, text))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_prefill_uses_the_whole_context(model_type: str) -> None:
    plain, backbone = pair(model_type)
    text = random_tokens(CONTEXT)
    cache = backbone.new_cache(1, CONTEXT + 64)
    backbone.prefill(text[:-3], 0, cache)
    end = backbone.logits(backbone.prefill(text[-3:], 0, cache).hidden)
    assert_close(end, plain_logits(plain, text)[-3:])


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_tree_may_reach_past_the_context(model_type: str) -> None:
    plain, backbone = pair(model_type)
    text, tree = random_tokens(CONTEXT - 2), TREES["bushy"]
    cache = backbone.new_cache(1, CONTEXT + 64)
    backbone.prefill(text, 0, cache)
    tokens, logits = verified(backbone, [tree], [0], cache, seed=1)
    for node in (tree.depth <= 1).nonzero()[:, 0].tolist():
        path = tokens[0, nodes_on(tree, node)].tolist()
        assert_close(logits[0, node], plain_logits(plain, text + path)[-1])


@every_model
def test_a_batch_of_chains_equals_the_plain_pass(model_type: str) -> None:
    plain, backbone = pair(model_type)
    texts = [random_tokens(length, seed=length) for length in (4, 11)]
    cache = backbone.new_cache(2, CONTEXT)
    for slot, text in enumerate(texts):
        backbone.prefill(text, slot, cache)
    tokens = torch.tensor([random_tokens(3, 1), random_tokens(3, 2)])
    logits = backbone.logits(backbone.extend(tokens, [0, 1], cache))
    for row, text in enumerate(texts):
        expected = plain_logits(plain, text + tokens[row].tolist())[-3:]
        assert_close(logits[row], expected)


@every_model
def test_logits_are_the_models_own(model_type: str) -> None:
    plain, backbone = pair(model_type)
    text = random_tokens(6)
    with torch.inference_mode():
        hidden = plain.base_model(input_ids=torch.tensor([text])).last_hidden_state
        output_layer: Any = plain.get_output_embeddings()
        bare = output_layer(hidden)
    logits = backbone.logits(hidden)
    assert_close(logits[0], plain_logits(plain, text))
    changed = {"gemma2", "gemma3_text", "granite"}
    assert torch.allclose(bare, logits, atol=1e-3) == (model_type not in changed)
    assert_close(backbone.logits(hidden[0, 3]), logits[0, 3])


GENERATE = {
    "dynamic cache": {},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 2},
}


@every_model
@pytest.mark.parametrize("options", GENERATE.values(), ids=GENERATE)
def test_generate_still_gives_the_models_own_text(model_type: str, options: dict[str, Any]) -> None:
    plain, backbone = pair(model_type)
    # With left padding, so that ignoring the mask would change the text.
    prompts = torch.tensor([random_tokens(12, 1), random_tokens(12, 2)])
    mask = torch.ones_like(prompts)
    mask[1, :5] = 0
    generators: list[Any] = [plain.generate, backbone.model.generate]
    outputs = [
        generate(
            prompts,
            attention_mask=mask,
            max_new_tokens=WINDOW + 2,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        for generate in generators
    ]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert_close(torch.stack(outputs[0].logits), torch.stack(outputs[1].logits))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("llama", {"sliding_window": WINDOW}), ("mistral", {"sliding_window": None}), ("opt", {"ffn_dim": 64})],
    ids=["a window that the model ignores", "no window", "a decoder inside the base model"],
)
def test_unusual_configurations(model_type: str, changes: dict[str, Any]) -> None:
    plain = tiny_model(model_type, **changes)
    backbone = build_backbone(tiny_model(model_type, **changes))
    assert getattr(backbone.config, "sliding_window", None) == changes.get("sliding_window")
    text = random_tokens(20)
    cache = backbone.new_cache(1, CONTEXT)
    backbone.prefill(text, 0, cache)
    tokens, logits = verified(backbone, [TREES["bushy"]], [0], cache, seed=3)
    check_paths(plain, text, TREES["bushy"], tokens[0], logits[0])


def test_grouped_heads_read_the_cache_once_and_exotic_scores_fall_back_to_eager() -> None:
    used = {model_type: pair(model_type)[1].model.config._attn_implementation for model_type in SUPPORTED}
    assert {model_type for model_type, name in used.items() if name == "eager"} == {"gemma2", "gpt_oss"}
    assert {name for name in used.values() if name != "eager"} == {"entmtp_tree"}


def test_a_cap_too_high_to_show_on_a_few_tokens_is_not_dropped() -> None:
    backbone = build_backbone(tiny_model("gemma2", attn_logit_softcapping=1e6))
    assert backbone.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(("eos", "expected"), [(None, set()), (7, {7}), ([7, 9], {7, 9})])
def test_end_tokens_come_from_the_generation_config(eos: int | list[int] | None, expected: set[int]) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = eos
    assert build_backbone(model).eos_token_ids == expected


def test_a_prompt_that_does_not_fit_the_cache_is_an_error() -> None:
    _, backbone = pair("llama")
    with pytest.raises(EntMTPError, match="do not fit its 8 rows"):
        backbone.prefill(random_tokens(9), 0, backbone.new_cache(1, 8))
