"""The backbone of the fused kernels alone computes what the backbone of transformers' model with them computes."""

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from entmtp.errors import EntMTPError
from entmtp.heads.medusa import MedusaConfig, MedusaHeads
from entmtp.models import transformers_model as made
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.fused_backbone import FusedBackbone
from entmtp.models.gguf.file import GgufFile
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockWeight, weight_of
from entmtp.models.kernels.packed_weight import pack
from entmtp.models.loading.load import load_model, load_weights
from entmtp.models.transformers_backbone import TransformersBackbone
from entmtp.settings import Kernels
from entmtp.trees.batch import TreeBatch
from tests.helpers.gguf_files import write_model
from tests.helpers.tiny_models import TREES, greedy, random_tokens

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
PROMPT = random_tokens(9)


def backbones(path: Path, kernels: Kernels = "auto") -> tuple[FusedBackbone, TransformersBackbone]:
    ours, theirs = (build_backbone(load(str(path))[0], kernels) for load in (load_weights, load_model))
    assert isinstance(ours, FusedBackbone)
    assert isinstance(theirs, TransformersBackbone)
    return ours, theirs


@torch.inference_mode()
def computed(backbone: Backbone) -> list[torch.Tensor]:
    """States of a prompt and a chain, and logits and states of trees, with the states that enter both layers."""
    cache = backbone.new_cache(slots=2, capacity=64)
    states = [each for slot in range(2) for each in backbone.prefill(PROMPT[slot:], slot, cache, (1, 0))]
    trees = TreeBatch.of([TREES["bushy"], TREES["chain"]])
    kv_range = cache.kv_range([0, 1], trees.width, padded=True)
    tokens = torch.arange(2 * trees.width).view(2, -1) + 3
    logits, verified = backbone.verify(tokens, trees, kv_range, cache, (1, 0))
    return [*states, logits, *verified, backbone.extend(tokens[:, :1], [0, 1], cache)]


@pytest.mark.parametrize("kernels", ["auto", "fused-int8"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_its_bits_are_those_of_transformers_model_with_the_same_kernels(
    architecture: str, kernels: Kernels, tmp_path: Path
) -> None:
    ours, theirs = backbones(write_model(tmp_path / "model.gguf", architecture, "Q4_1"), kernels)
    for found, expected in zip(computed(ours), computed(theirs), strict=True):
        assert torch.equal(found, expected)
    for name in (
        "fingerprint",
        "kernels",
        "kernels_description",
        "cache_shapes",
        "device",
        "devices",
        "dtype",
        "hidden_size",
        "vocab_size",
        "max_context",
        "eos_token_ids",
        "make_layer",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert torch.equal(ours.embeddings.rows, theirs.embeddings.rows)  # type: ignore[union-attr]


def test_transformers_model_is_built_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_model(tmp_path / "model.gguf", "llama", "Q4_1"))
    build_backbone(load_weights(path)[0])  # the comparison at the first load
    asked: list[object] = []
    real = made.transformers_model

    def watched(model: object) -> object:
        asked.append(model)
        return real(model)  # type: ignore[arg-type]

    monkeypatch.setattr(made, "transformers_model", watched)
    weights, _ = load_weights(path)
    backbone = build_backbone(weights)
    assert not asked
    assert greedy(backbone.model, PROMPT, 5) == greedy(load_model(path)[0], PROMPT, 5)
    assert asked[0] is weights


@pytest.mark.parametrize("kernels", ["packed", "eager"])
def test_other_kernels_run_in_transformers_model(kernels: Kernels, tmp_path: Path) -> None:
    weights, _ = load_weights(str(write_model(tmp_path / "model.gguf", "llama", "Q8_0")))
    assert isinstance(build_backbone(weights, kernels), TransformersBackbone)


def test_rounding_kernels_need_blocks_here_too(tmp_path: Path) -> None:
    weights, _ = load_weights(str(write_model(tmp_path / "model.gguf", "llama", "F32")))
    with pytest.raises(EntMTPError, match="'fused-int8' needs weights in GGUF's blocks"):
        build_backbone(weights, "fused-int8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types_are_loaded_as_transformers_model(dtype: str, tmp_path: Path) -> None:
    loaded, _ = load_weights(str(write_model(tmp_path / "model.gguf", "llama", "Q8_0")), dtype)
    assert type(loaded).__name__ == "LlamaForCausalLM"


@torch.inference_mode()
def test_heads_share_the_blocks_of_the_output_layer(tmp_path: Path) -> None:
    ours, _ = backbones(write_model(tmp_path / "model.gguf", "llama", "Q8_0"))
    config = MedusaConfig(hidden_size=ours.hidden_size, vocab_size=ours.vocab_size, num_heads=2, draft_vocab_size=8)
    heads, chosen = MedusaHeads(config), torch.randperm(ours.vocab_size)[:8]
    heads.draft_vocab.copy_(chosen)
    heads.attach(ours)
    assert isinstance(heads.output_weight, BlockWeight)
    weight = weight_of(ours.output_layer)
    assert isinstance(weight, BlockWeight)
    assert torch.equal(heads.output_weight.dequantized(), weight.dequantized()[chosen])
    states = torch.randn(3, ours.hidden_size)
    plain = nn.functional.linear(states, heads.output_weight.dequantized())
    assert ((heads.draft_logits(states) - plain).norm() / plain.norm()).item() < 0.05


def test_heads_of_one_draft_vocabulary_share_its_rows(tmp_path: Path) -> None:
    ours, _ = backbones(write_model(tmp_path / "model.gguf", "llama", "Q8_0"))
    config = MedusaConfig(hidden_size=ours.hidden_size, vocab_size=ours.vocab_size, num_heads=2, draft_vocab_size=8)
    chosen, other = torch.randperm(ours.vocab_size).split(8)[:2]
    heads = [MedusaHeads(config) for _ in range(3)]
    for each, vocabulary in zip(heads, (chosen, chosen, other), strict=True):
        each.draft_vocab.copy_(vocabulary)
        each.attach(ours).draft_only()
    first, same, another = (weight_of_output(each) for each in heads)
    assert first is same
    assert pack(first) is pack(same)
    assert first is not another
    rows = weakref.ref(first.rows)
    del first, same, heads[:2], each
    assert rows() is None, "rows without heads take no memory"


def weight_of_output(heads: MedusaHeads) -> BlockWeight:
    assert isinstance(heads.output_weight, BlockWeight)
    return heads.output_weight


def test_pages_of_the_file_are_given_back_once_they_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = []
    monkeypatch.setattr(GgufFile, "release", lambda file: released.append(file.path))
    path = write_model(tmp_path / "model.gguf", "llama", "Q4_1")
    backbone = build_backbone(load_weights(str(path))[0])
    assert released == [path]
    config = MedusaConfig(hidden_size=backbone.hidden_size, vocab_size=backbone.vocab_size, draft_vocab_size=8)
    MedusaHeads(config).attach(backbone)
    assert released == [path] * 2, "heads read rows from all over the file"
