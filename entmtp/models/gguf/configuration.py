"""The configuration of a model in a GGUF file."""

from __future__ import annotations

from typing import Any

from entmtp.errors import EntMTPError, quoted
from entmtp.models.bare_config import BareConfig
from entmtp.models.gguf.file import GgufFile
from entmtp.models.gguf.metadata import optional, required

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""GGUF's architectures that are read (Mistral and SmolLM are 'llama' there), and transformers' model types."""
_EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_EXPERTS = "expert_count"


def architecture(file: GgufFile) -> str:
    """The file's architecture, one of :data:`ARCHITECTURES`.

    Raises:
        EntMTPError: if it is another one.
    """
    name = required(file, "general.architecture", str)
    if name not in ARCHITECTURES or (optional(file, f"{name}.{_EXPERTS}", int) or 0) > 0:
        raise EntMTPError(
            f"model '{file.path}': the architecture {quoted(name)} can't be read from GGUF here, only dense"
            f" {', '.join(ARCHITECTURES)}; give the model's Hugging Face folder or name, with --weights q4 for 4 bits"
        )
    return name


def configuration(file: GgufFile) -> BareConfig:
    """Configuration of the model.

    Raises:
        EntMTPError: if the architecture is unsupported, or a field is missing or impossible.
    """
    name = architecture(file)

    def number(key: str) -> int:
        value = required(file, f"{name}.{key}", int)
        if value < 1:
            raise EntMTPError(f"model '{file.path}': {name}.{key} is {value}, not positive; download the file again")
        return value

    hidden, heads = number("embedding_length"), number("attention.head_count")
    kv_heads = optional(file, f"{name}.attention.head_count_kv", int) or heads
    head_dim = optional(file, f"{name}.attention.key_length", int) or hidden // heads
    if heads % kv_heads or head_dim < 1:
        raise EntMTPError(
            f"model '{file.path}': {heads} attention heads can't share {kv_heads} heads of keys;"
            " download the file again"
        )
    tokens = {key: optional(file, f"tokenizer.ggml.{key}_token_id", int) for key in ("bos", "eos", "padding")}
    return BareConfig(
        model_type=ARCHITECTURES[name],
        vocab_size=_vocabulary(file),
        hidden_size=hidden,
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=number("context_length"),
        rms_norm_eps=required(file, f"{name}.attention.layer_norm_rms_epsilon", float),
        rope_parameters=_rope(file, name),
        tie_word_embeddings=OUTPUT not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        bos_token_id=tokens["bos"],
        eos_token_id=tokens["eos"],
        pad_token_id=tokens["padding"],
    )


def _vocabulary(file: GgufFile) -> int:
    table = file.tensors.get(_EMBEDDING)
    if table is None or len(table.shape) != 2:
        raise EntMTPError(f"model '{file.path}': it has no tensor {_EMBEDDING}; give a file with a whole model")
    return table.shape[0]


def _rope(file: GgufFile, name: str) -> dict[str, Any]:
    """Rotary embedding; the factors of ``rope_freqs.weight`` are applied to the model itself."""
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": optional(file, f"{name}.rope.freq_base", float) or 10_000.0,
    }
    kind = optional(file, f"{name}.rope.scaling.type", str) or "none"
    if kind == "none":
        return rope
    if kind not in ("linear", "yarn"):
        raise EntMTPError(
            f"model '{file.path}': {name}.rope.scaling.type is {quoted(kind)}; none, linear and yarn are known here;"
            " give the model's Hugging Face folder or name"
        )
    rope |= {"rope_type": kind, "factor": required(file, f"{name}.rope.scaling.factor", float)}
    if kind == "yarn":
        key = f"{name}.rope.scaling.original_context_length"
        rope["original_max_position_embeddings"] = required(file, key, int)
    return rope
