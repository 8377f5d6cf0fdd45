"""Hydra++ heads: their guesses equal the published formula on the whole text, and imports succeed or are refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from entmtp.calibration.build import read_text
from entmtp.decoding.state import DecodingState
from entmtp.decoding.timers import Stopwatch
from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.hydra_plus_plus import HydraPlusPlusHeads
from entmtp.heads.hydra_plus_plus_cache import HydraPlusPlusDrafter
from entmtp.heads.importing.import_heads import import_heads
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.block_weight import dequantized
from entmtp.training.corpus import Text
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.heads_with_caches import BUSHY, CLOSE
from tests.helpers.hydra_plus_plus_heads import (
    PREFIX,
    HydraPlusPlusShape,
    hydra_plus_plus_states,
    published_hydra_plus_plus,
)
from tests.helpers.published_checkpoints import Model, Published
from tests.helpers.saved_project import save_tokenizer
from tests.helpers.small_cases import SMALL_VOCAB, small_prompt
from tests.helpers.tiny_models import TREES, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with an unusual rotary base."""
    rope = {"rope_type": "default", "rope_theta": 500.0}
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=SMALL_VOCAB, rope_parameters=rope).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    from transformers import AutoModelForCausalLM

    return build_backbone(AutoModelForCausalLM.from_pretrained(folder), kernels="eager")


@pytest.fixture(scope="module")
def shape(backbone: Backbone) -> HydraPlusPlusShape:
    return HydraPlusPlusShape.of(backbone.model)


@pytest.fixture(scope="module")
def published(backbone: Backbone, shape: HydraPlusPlusShape) -> Published:
    output = backbone.model.get_output_embeddings().weight.detach()
    return published_hydra_plus_plus(Model(output.clone(), dequantized(backbone.embeddings).detach().clone()), shape)


@pytest.fixture(scope="module")
def heads(
    published: Published, backbone: Backbone, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> StatelessHeads:
    parent = tmp_path_factory.mktemp("heads")
    import_heads(str(published.save(parent / "published")), parent / "ours", str(folder), lambda text: None)
    heads = load_heads(parent / "ours", backbone)
    assert isinstance(heads, StatelessHeads)
    return heads


@pytest.fixture(scope="module")
def expected(published: Published, backbone: Backbone, shape: HydraPlusPlusShape) -> Callable[..., torch.Tensor]:
    """Log-probabilities ``[vocab]`` after a path, drafted after a text that ends in the root."""

    @torch.inference_mode()
    def log_probs(text: Sequence[int], path: Sequence[int]) -> torch.Tensor:
        decoder = backbone.model.get_decoder()
        hidden = decoder(input_ids=torch.tensor([list(text[:-1])]), use_cache=False).last_hidden_state[0]
        state = hydra_plus_plus_states(published, shape, hidden)[-1:]
        return published.logits(len(path), state, torch.tensor([[text[-1], *path]]))[0].log_softmax(-1)

    return log_probs


def test_they_come_back_as_they_were_imported(heads: StatelessHeads, backbone: Backbone, published: Published) -> None:
    assert isinstance(heads, HydraPlusPlusHeads)
    assert (heads.kind, heads.num_heads, heads.config.model_fingerprint) == ("hydra", 4, backbone.fingerprint)
    projection = heads.prefix_layer.layer.self_attn.q_proj.weight
    assert torch.equal(projection, published.tensors[f"{PREFIX}layers.0.self_attn.q_proj.weight"])


def test_drafted_trees_of_several_texts_equal_the_formula(
    heads: StatelessHeads, backbone: Backbone, expected: Callable[..., torch.Tensor]
) -> None:
    prompts = [small_prompt(9, seed=1), small_prompt(14, seed=2), small_prompt(1, seed=3)]
    state = DecodingState(backbone, heads, slots=3, capacity=64)
    texts = [[*prompt, state.prefill(slot, prompt)[0]] for slot, prompt in enumerate(prompts)]
    trees = [BUSHY, Topology.root_only(), TREES["wide"]]
    assert state.drafter is not None
    with torch.inference_mode():
        proposal = state.drafter.draft((0, 1, 2), state.root, TreeBatch.of(trees))
    for row, (text, tree) in enumerate(zip(texts, trees, strict=True)):
        tokens = proposal.tokens[row].tolist()
        for node, path in enumerate(tree.paths, start=1):
            before = [tokens[tree.index[path[:depth]]] for depth in range(1, len(path))]
            found = expected(text, before)
            assert abs(found[tokens[node]] - proposal.log_probs[row, node]) < CLOSE
            assert abs(found.sort(descending=True).values[path[-1]] - proposal.log_probs[row, node]) < CLOSE


def test_a_tree_that_grows_holds_what_the_formula_gives(
    heads: StatelessHeads, backbone: Backbone, expected: Callable[..., torch.Tensor]
) -> None:
    prompt = small_prompt(9, seed=1)
    state = DecodingState(backbone, heads, slots=2, capacity=64)
    text, parent = [*prompt, state.prefill(1, prompt)[0]], 0
    path: list[int] = []
    expansion = state.expand([1], Stopwatch(backbone.device))
    for rank in (1, 0, 2, 0):
        tokens, log_probs = expansion.next_level([parent], 3)
        torch.testing.assert_close(log_probs[0], expected(text, path).topk(3).values, rtol=0, atol=CLOSE)
        path, parent = [*path, int(tokens[0, rank])], rank


@torch.inference_mode()
def test_guesses_at_every_position_of_a_traced_text_equal_those_after_its_prefix(
    heads: StatelessHeads, backbone: Backbone, expected: Callable[..., torch.Tensor]
) -> None:
    prompt, answer = small_prompt(3, seed=4), small_prompt(12, seed=5)
    text, _ = read_text(backbone, heads, Text(prompt, answer))
    assert text is not None
    at = torch.arange(len(answer) - heads.num_heads + 1)
    windows = torch.tensor(answer).unfold(0, heads.num_heads, 1)
    guessed = heads.draft_logits(text.teacher_forced(at, windows)).log_softmax(-1)
    for position in at.tolist():
        before = [*prompt, *answer[: position + 1]]
        for head in range(heads.num_heads):
            path = answer[position + 1 : position + 1 + head]
            torch.testing.assert_close(guessed[position, head], expected(before, path), rtol=0, atol=CLOSE)
        first = text.expand(position).next_level([0], 2)[1]
        torch.testing.assert_close(first[0], expected(before, []).topk(2).values, rtol=0, atol=CLOSE)


def test_a_long_prompt_is_taken_in_in_parts(
    heads: StatelessHeads, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = small_prompt(23)
    whole = DecodingState(backbone, heads, slots=1, capacity=64)
    whole.prefill_chunk(0, prompt)
    monkeypatch.setattr("entmtp.heads.hydra_plus_plus_cache.PREFILL_CHUNK", 5)
    parts = DecodingState(backbone, heads, slots=1, capacity=64)
    parts.prefill_chunk(0, prompt[:7])
    parts.prefill_chunk(0, prompt[7:])
    assert isinstance(parts.drafter, HydraPlusPlusDrafter)
    assert isinstance(whole.drafter, HydraPlusPlusDrafter)
    torch.testing.assert_close(parts.drafter.states, whole.drafter.states, rtol=0, atol=CLOSE)


def test_their_angles_stay_exact_in_sixteen_bits(folder: Path, published: Published, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    import_heads(str(published.save(tmp_path / "published")), tmp_path / "ours", str(folder), lambda text: None)
    halved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    heads = load_heads(tmp_path / "ours", build_backbone(halved))
    assert isinstance(heads, HydraPlusPlusHeads)
    assert heads.prefix_layer.norm.weight.dtype == torch.bfloat16
    speeds = 500.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(heads.prefix_layer.rotary.inv_freq, speeds, rtol=1e-6, atol=0)


def refused(published: Published, model: Path | None, folder: Path, named: str) -> None:
    with pytest.raises(EntMTPError) as raised:
        import_heads(
            str(published.save(folder / "published")),
            folder / "ours",
            None if model is None else str(model),
            lambda text: None,
        )
    assert named in str(raised.value)
    assert not (folder / "ours").exists()


def test_without_the_model_nothing_tells_its_attention_heads(published: Published, tmp_path: Path) -> None:
    refused(published, None, tmp_path, "nothing tells its attention heads; give --model with the model that they are")


def test_another_kind_of_model_is_refused(published: Published, tmp_path: Path) -> None:
    tiny_model("qwen3", vocab_size=SMALL_VOCAB).save_pretrained(tmp_path / "qwen")
    save_tokenizer(tmp_path / "qwen")
    refused(
        published, tmp_path / "qwen", tmp_path, "published for models of type 'llama', and this one is of type 'qwen3'"
    )


@pytest.mark.parametrize(
    ("name", "size", "named"),
    [
        (
            "layers.0.self_attn.k_proj.weight",
            (32, 32),
            "'prefix_embeding_layer.layers.0.self_attn.k_proj.weight' has shape",
        ),
        ("norm.weight", None, "'prefix_embeding_layer.norm.weight' is missing"),
        ("layers.1.norm.weight", (32,), "'prefix_embeding_layer.layers.1.norm.weight' should not be there"),
        ("embed_tokens.weight", (3, 32), "'prefix_embeding_layer.embed_tokens.weight' has shape [3, 32] instead of"),
    ],
)
def test_a_layer_that_is_not_whole_is_refused(
    published: Published, folder: Path, tmp_path: Path, name: str, size: tuple[int, ...] | None, named: str
) -> None:
    tensors = {key: tensor for key, tensor in published.tensors.items() if key != PREFIX + name}
    if size is not None:
        tensors[PREFIX + name] = torch.ones(size)
    refused(replace(published, tensors=tensors), folder, tmp_path, named)


def test_what_an_older_version_saved_too_is_left_out(published: Published, folder: Path, tmp_path: Path) -> None:
    angles = {f"{PREFIX}layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    older = replace(published, tensors=published.tensors | angles)
    import_heads(str(older.save(tmp_path / "published")), tmp_path / "ours", str(folder), lambda text: None)
    assert (tmp_path / "ours" / "model.safetensors").is_file()


def test_heads_that_do_not_see_guesses_are_refused(published: Published, folder: Path, tmp_path: Path) -> None:
    tensors = {
        name: torch.ones(32, 32) if name.endswith("0.1.linear.weight") or ".1.linear.weight" in name else tensor
        for name, tensor in published.tensors.items()
        if "res_connection" not in name
    }
    blind = replace(published, tensors=tensors, config=published.config | {"grounded_heads": False})
    refused(blind, folder, tmp_path, "do not see the tokens guessed before them; only grounded ones")
