"""Models in GGUF files: any architecture and format that is read writes what plain float32 weights write."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from transformers import AutoModelForCausalLM

from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.models.fingerprint import model_fingerprint
from entmtp.models.gguf.configuration import ARCHITECTURES
from entmtp.models.gguf.file import read_gguf
from entmtp.models.gguf.model import gguf_model
from entmtp.models.kernels import compiled
from entmtp.models.kernels.block_weight import BlockLinear, dequantize_layers, formats_of
from entmtp.models.kernels.compiled import BLOCK_FORMATS
from entmtp.models.loading.load import load_model, max_positions, vocabulary_size
from entmtp.models.transformers_model import reference_model, transformers_model
from tests.helpers.gguf_files import VOCABULARY, write_model
from tests.helpers.tiny_models import greedy

PROMPT = [5, 17, 80, 33]


def plain(path: Path) -> Any:
    """The model with float32 weights of PyTorch's own layers."""
    model = transformers_model(gguf_model(read_gguf(path)))
    dequantize_layers(model)
    return model


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("format", ["F32", *sorted(BLOCK_FORMATS)])
def test_a_file_writes_what_its_weights_in_float32_write(architecture: str, format: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, format)
    model, _ = load_model(str(path))
    backbone = build_backbone(model)
    if compiled.unsupported_reason() is None:
        assert backbone.kernels == "fused"
        assert ("float32" if format == "F32" else format) in backbone.kernels_description
    expected = plain(path)
    assert greedy(reference_model(model), PROMPT, 12) == greedy(expected, PROMPT, 12)
    cache = backbone.new_cache(slots=1, capacity=64)
    with torch.inference_mode():
        states = backbone.prefill(PROMPT, 0, cache).hidden
        logits = backbone.logits(states)
        assert torch.allclose(logits, expected(torch.tensor([PROMPT])).logits[0], rtol=1e-4, atol=1e-4)
    assert backbone.fingerprint == model_fingerprint(expected)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_it_is_the_model_that_transformers_reads(architecture: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, "Q8_0")
    theirs: Any = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=path.name, dtype=torch.float32)
    with torch.inference_mode():
        found, expected = (model(torch.tensor([PROMPT])).logits for model in (plain(path), theirs.eval()))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_tied_output_layer_is_the_embedding_table(tmp_path: Path) -> None:
    model: Any = gguf_model(read_gguf(without(write_model(tmp_path / "model.gguf", "llama", "Q4_1"), "output.weight")))
    assert model.config.tie_word_embeddings
    assert model.lm_head.blocks is model.model.embed_tokens.blocks


def test_layers_of_several_formats_are_read_side_by_side(tmp_path: Path) -> None:
    paths = [write_model(tmp_path / f"{name}.gguf", "llama", name) for name in ("Q4_K", "Q6_K")]
    models: list[Any] = [gguf_model(read_gguf(path)) for path in paths]
    model, other = models
    model.model.layers[0].self_attn.v_proj = other.model.layers[0].self_attn.v_proj
    model.model.layers[1].mlp.up_proj = other.model.layers[1].mlp.up_proj
    assert formats_of(model) == ["Q4_K", "Q6_K"]
    backbone, expected = build_backbone(model), greedy(reference_model(model), PROMPT, 12)
    cache = backbone.new_cache(slots=1, capacity=64)
    with torch.inference_mode():
        logits = backbone.logits(backbone.prefill([*PROMPT, *expected], 0, cache).hidden)
    assert logits[len(PROMPT) - 1 : -1].argmax(-1).tolist() == expected


def test_rope_factors_of_a_file_divide_the_frequencies(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q4_0")
    factors = torch.linspace(1, 8, 32)
    model: Any = gguf_model(read_gguf(with_tensor(path, "rope_freqs.weight", factors)))
    original: Any = gguf_model(read_gguf(path))
    assert torch.allclose(model.model.rotary_emb.inv_freq * factors, original.model.rotary_emb.inv_freq)
    assert torch.equal(transformers_model(model).model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_what_is_asked_of_a_name_is_read_without_the_model(tmp_path: Path) -> None:
    path = str(write_model(tmp_path / "model.gguf", "qwen3", "Q4_0"))
    assert (max_positions(path), vocabulary_size(path)) == (128, len(VOCABULARY))


def test_other_types_and_eager_kernels_have_plain_weights(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q5_1")
    half, _ = load_model(str(path), dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert formats_of(half) == []
    model, _ = load_model(str(path))
    backbone = build_backbone(model, "eager")
    assert formats_of(backbone.model) == []
    assert any(isinstance(layer, BlockLinear) for layer in model.modules()), "the given model stays as it is"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "mamba"}, "the architecture 'mamba' can't be read"),
    "experts": ({"llama.expert_count": 8}, "only dense llama, qwen2, qwen3"),
    "missing": ({"llama.block_count": None}, "its metadata lacks llama.block_count"),
    "zero": ({"llama.embedding_length": 0}, "llama.embedding_length is 0, not positive"),
    "type": ({"llama.context_length": "long"}, "llama.context_length is 'long', not of type int"),
    "heads": ({"llama.attention.head_count_kv": 3}, "4 attention heads can't share 3 heads of keys"),
    "scaling": ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'"),
    "shape": ({"llama.feed_forward_length": 1024}, "has the shape (512, 256), but its metadata say (1024, 256)"),
    "layers": ({"llama.block_count": 3}, "it has no tensor blk.2."),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_model_that_cannot_be_read_is_one_line_with_a_way_out(name: str, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    path = write_model(tmp_path / "model.gguf", "llama", "Q4_0", **changes)
    with pytest.raises(EntMTPError) as raised:
        gguf_model(read_gguf(path))
    assert "\n" not in str(raised.value)
    assert f"model '{path}': " in str(raised.value)
    assert message in str(raised.value)


def test_an_unknown_format_is_refused_by_name(tmp_path: Path) -> None:
    path = with_tensor(write_model(tmp_path / "model.gguf", "llama", "Q4_0"), "output_norm.weight", None)
    with pytest.raises(EntMTPError, match=r"tensor output_norm.weight is in TQ1_0; known are Q4_0, .*such as Q4_K_M"):
        gguf_model(read_gguf(path))


def without(path: Path, name: str) -> Path:
    """A copy of the file without a tensor."""
    return _copied(path, {name: None})


def with_tensor(path: Path, name: str, values: torch.Tensor | None) -> Path:
    """A copy of the file with another tensor, or with one of a format that nobody reads here."""
    return _copied(path, {name: values if values is not None else "TQ1_0"})


def _copied(path: Path, changes: dict[str, Any]) -> Path:
    source, target = GGUFReader(path), path.with_name("copy.gguf")
    writer = GGUFWriter(target, "llama")
    for name, field in source.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            items = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=items)
    for tensor in source.tensors:
        if tensor.name not in changes:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in changes.items():
        if isinstance(values, str):
            writer.add_tensor(name, np.zeros((1, 54), np.uint8), raw_dtype=GGMLQuantizationType[values])
        elif values is not None:
            writer.add_tensor(name, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
