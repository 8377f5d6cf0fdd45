"""Features are the states that enter the named layers, as transformers' ``output_hidden_states`` has them."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.models import backbone as module
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.features import FeatureBuffer, decoder_layers
from entmtp.models.gguf.configuration import ARCHITECTURES
from entmtp.models.gguf.file import read_gguf
from entmtp.models.gguf.model import gguf_model
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import dequantize_layers
from entmtp.models.loading.load import load_model, load_weights
from entmtp.models.states import States
from entmtp.models.transformers_backbone import TransformersBackbone
from entmtp.models.transformers_model import transformers_model
from entmtp.settings import Kernels
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.gguf_files import write_model
from tests.helpers.heads_with_features import CLOSE, LAYERS, READ, entering
from tests.helpers.tiny_models import CONTEXT, PATTERN, TREES, VOCAB, nodes_on, random_tokens, tiny_model

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied llama": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 64}),
    "gemma2": ("gemma2", {"layer_types": PATTERN * 2}),
    "mixtral": ("mixtral", {}),
}
CASES: list[tuple[str, Kernels]] = [
    *((kind, "auto") for kind in KINDS),
    *((kind, kernels) for kind in ("llama", "gpt2") for kernels in ("packed", "eager")),
    *((kind, "eager") for kind in ("qwen3", "gemma2")),
]
needs_compiler = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
SLOTS, LENGTHS = (3, 0, 2), (9, 1, 20)


def made(kind: str) -> PreTrainedModel:
    model_type, changes = KINDS[kind]
    return tiny_model(model_type, num_hidden_layers=LAYERS, **changes)


@cache
def pair(kind: str, kernels: Kernels) -> tuple[PreTrainedModel, Backbone]:
    """The plain model, and a backbone of another with the same weights."""
    return made(kind), build_backbone(made(kind), kernels)


def verified(
    backbone: Backbone, trees: list[Topology], slots: tuple[int, ...] = SLOTS, layers: tuple[int, ...] = READ
) -> tuple[list[list[int]], torch.Tensor, States]:
    """The texts of the slots, and the tokens and states of a tree after each."""
    texts = [random_tokens(length, seed=length) for length in LENGTHS[: len(slots)]]
    memory = backbone.new_cache(4, CONTEXT)
    for slot, text in zip(slots, texts, strict=True):
        backbone.prefill(text, slot, memory)
    batch = TreeBatch.of(trees, backbone.device, rounded=False)
    tokens = (torch.arange(batch.width) + torch.tensor([[1], [20], [40]])[: len(slots)]) % VOCAB
    kv_range = memory.kv_range(slots, batch.width, padded=batch.shape.padded)
    _, states = backbone.verify(tokens, batch, kv_range, memory, layers)
    return texts, tokens, states


def check_nodes(
    plain: PreTrainedModel, trees: list[Topology], found: tuple[list[list[int]], torch.Tensor, States]
) -> None:
    """Check every node's features against a plain run of its text and its path."""
    texts, tokens, states = found
    for row, (text, tree) in enumerate(zip(texts, trees, strict=True)):
        for node in range(tree.nodes + 1):
            path = tokens[row, nodes_on(tree, node)].tolist()
            expected = entering(plain, [*text, *path])[-1]
            torch.testing.assert_close(states.features[row, node], expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(("kind", "kernels"), CASES)
def test_a_prompt_read_in_chunks(kind: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PREFILL_CHUNK", 12)
    plain, backbone = pair(kind, kernels)
    text = random_tokens(30)
    states = backbone.prefill(text, 0, backbone.new_cache(1, 40), READ)
    assert states.features.dtype == backbone.dtype
    torch.testing.assert_close(states.features, entering(plain, text), rtol=CLOSE, atol=CLOSE)
    without = backbone.prefill(text, 0, backbone.new_cache(1, 40))
    assert torch.equal(states.hidden, without.hidden)


@pytest.mark.parametrize(("kind", "kernels"), CASES)
@pytest.mark.parametrize("names", [("bushy", "root", "wide"), ("chain", "chain", "chain")], ids=str)
def test_the_nodes_of_a_batch_of_trees(kind: str, kernels: Kernels, names: tuple[str, ...]) -> None:
    plain, backbone = pair(kind, kernels)
    trees = [TREES[name] for name in names]
    check_nodes(plain, trees, verified(backbone, trees))


@pytest.mark.parametrize("kernels", ["auto", "eager"])
def test_layers_in_any_order_and_more_than_once(kernels: Kernels) -> None:
    plain, backbone = pair("llama", kernels)
    text, layers = random_tokens(7), (3, 1, 3, 0)
    found = backbone.prefill(text, 0, backbone.new_cache(1, 40), layers).features
    torch.testing.assert_close(found, entering(plain, text, layers), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("kernels", ["auto", "packed", "eager"])
def test_without_layers_the_features_are_the_decoder_states_themselves(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_CHUNK", 12)
    _, backbone = pair("llama", kernels)
    states = backbone.prefill(random_tokens(30), 0, backbone.new_cache(1, 40))
    assert states.features is states.hidden
    _, _, states = verified(backbone, [TREES["bushy"]] * 3, layers=())
    assert states.features is states.hidden


@needs_compiler
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads() -> None:
    backbone = build_backbone(made("llama"), "fused")
    _, _, among = verified(backbone, [TREES["bushy"]] * 3)
    _, _, alone = verified(backbone, [TREES["bushy"]], SLOTS[:1])
    assert torch.equal(among.features[0], alone.features[0])
    for threads in (2, 3, 8):  # also more than there are cores, so that some are always late
        torch.set_num_threads(threads)
        for _ in range(5):
            assert torch.equal(verified(backbone, [TREES["bushy"]] * 3)[2].features, among.features)


@needs_compiler
@pytest.mark.parametrize("kernels", ["fused", "fused-int8"])
@pytest.mark.parametrize("format", ["Q4_0", "Q4_K", "Q8_0"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_weights_in_blocks(architecture: str, format: str, kernels: Kernels, tmp_path: Path) -> None:
    path, text = write_model(tmp_path / "model.gguf", architecture, format), [5, 17, 80, 33, 2, 9]
    plain = transformers_model(gguf_model(read_gguf(path)))
    dequantize_layers(plain)
    expected = entering(plain, text, (1, 0))
    for load in load_weights, load_model:
        backbone = build_backbone(load(str(path))[0], kernels)
        found = backbone.prefill(text, 0, backbone.new_cache(1, 40), (1, 0)).features
        error = ((found - expected).norm() / expected.norm()).item()
        assert error < (0.05 if kernels == "fused-int8" else 1e-5)


def test_half_precision_keeps_its_type() -> None:
    backbone = build_backbone(tiny_model("llama", num_hidden_layers=LAYERS, dtype=torch.bfloat16), "eager")
    text = random_tokens(7)
    found = backbone.prefill(text, 0, backbone.new_cache(1, 40), READ).features
    assert found.dtype == torch.bfloat16
    expected = entering(tiny_model("llama", num_hidden_layers=LAYERS, dtype=torch.bfloat16), text)
    assert ((found - expected).norm() / expected.norm()).item() < 0.02


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("layer", [LAYERS, -1])
def test_a_layer_outside_the_model_is_refused(kernels: Kernels, layer: int) -> None:
    _, backbone = pair("llama", kernels)
    with pytest.raises(EntMTPError, match=f"feature_layers: {layer} is not one of the model's 4 layers; .* 0 to 3"):
        backbone.check_feature_layers((1, layer))
    backbone.check_feature_layers((0, LAYERS - 1))


def test_a_pass_leaves_no_hooks() -> None:
    _, backbone = pair("llama", "eager")
    assert isinstance(backbone, TransformersBackbone)
    backbone.prefill(random_tokens(3), 0, backbone.new_cache(1, 40), READ)
    with pytest.raises(EntMTPError, match="do not fit"):
        backbone.prefill(random_tokens(9), 0, backbone.new_cache(1, 4), READ)
    buffer = FeatureBuffer(READ, (1, 1, 32), torch.float32, backbone.device)
    layers = decoder_layers(backbone.decoder, backbone.config)
    with pytest.raises(ZeroDivisionError), buffer.filled_by(layers):
        raise ZeroDivisionError
    assert not any(layer._forward_pre_hooks for layer in layers)


def lists(**modules: nn.Module) -> nn.Module:
    decoder = nn.Module()
    for name, made in modules.items():
        decoder.add_module(name, made)
    return decoder


def of(count: int, inner: nn.Module | None = None) -> nn.ModuleList:
    return nn.ModuleList(inner or nn.Linear(2, 2) for _ in range(count))


CONFIG = SimpleNamespace(num_hidden_layers=4, model_type="strange")


def test_layers_go_by_their_number() -> None:
    experts = lists(experts=of(4))
    decoder = lists(first=of(3), blocks=of(4, experts))
    assert decoder_layers(decoder, CONFIG) is decoder.blocks
    assert decoder_layers(lists(inner=lists(h=of(4))), CONFIG)[0] is not None


@pytest.mark.parametrize(("decoder", "count"), [(lists(first=of(3)), 0), (lists(one=of(4), other=of(4)), 2)])
def test_a_decoder_whose_layers_cannot_be_found_is_an_error(decoder: nn.Module, count: int) -> None:
    with pytest.raises(EntMTPError, match=f"feature_layers: model type 'strange' has {count} lists of 4 modules"):
        decoder_layers(decoder, CONFIG)


def test_layers_are_checked_before_any_pass() -> None:
    backbone = build_backbone(made("gpt2"), "eager")
    backbone.decoder.add_module("others", of(LAYERS))
    backbone.check_feature_layers(())
    with pytest.raises(EntMTPError, match="feature_layers: model type 'gpt2' has 2 lists of 4 modules"):
        backbone.check_feature_layers((1,))


def test_a_layer_that_is_not_called_is_an_error() -> None:
    layers = of(4)
    buffer = FeatureBuffer((0, 2), (3, 2), torch.float32, torch.device("cpu"))
    with (
        torch.inference_mode(),
        pytest.raises(EntMTPError, match="feature_layers: the model does not call its layer 2"),
        buffer.filled_by(layers),
    ):
        layers[0](torch.ones(3, 2))


def test_a_state_is_copied_before_the_layer_writes_into_it() -> None:
    layers = nn.ModuleList([nn.ReLU(inplace=True)])
    buffer = FeatureBuffer((0,), (3, 2), torch.float32, torch.device("cpu"))
    with torch.inference_mode(), buffer.filled_by(layers):
        layers[0](-torch.ones(3, 2))
    assert torch.equal(buffer.features, -torch.ones(3, 2))
