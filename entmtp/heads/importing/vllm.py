"""Medusa heads in vLLM's layout.

Files: ``model.safetensors``, and ``config.json`` with ``model_type`` "medusa", ``hidden_size``, ``vocab_size``,
``num_heads``, ``num_hidden_layers`` (also under Medusa's own names), and optionally ``truncated_vocab_size``,
``original_lm_head``, ``medusa_fc_bias``, ``logit_scale``.

Tensors, for head i of n blocks (each name may have the prefix ``medusa_heads.``):

- ``blocks.{i}.layers.{j}.weight [hidden, hidden]`` for j = 0 ... n - 1, and ``.bias [hidden]`` with ``medusa_fc_bias``;
- ``lm_heads.{i}.weight [vocab or truncated, hidden]``, without bias. With ``original_lm_head`` all heads share
  one: ``lm_head.weight``, ``lm_heads.0.weight``, or the model's own if there is neither;
- ``token_map [truncated]``, if ``truncated_vocab_size`` is less than ``vocab_size``: the tokens that the heads can
  guess. Output layers may be restricted to these tokens already, or cover the whole vocabulary.

Logits are multiplied by ``logit_scale``. Sources: ``vllm/model_executor/models/medusa.py`` and
``vllm/transformers_utils/configs/medusa.py`` in github.com/vllm-project/vllm.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import AliasChoices, Field

from entmtp.errors import EntMTPError
from entmtp.heads.importing.layout import (
    HeadsImport,
    Layout,
    build_heads,
    count_from_indices,
    indices,
    stack_grid,
    summary_of_blocks,
)
from entmtp.heads.importing.source import ConfigFields
from entmtp.heads.importing.tensors import Tensors
from entmtp.heads.original import OriginalHeads
from entmtp.heads.original_medusa import OriginalMedusaHeads

_BLOCK = r"blocks\.(\d{1,3})\.layers\.(\d{1,3})\.weight"


class VllmFields(ConfigFields):
    num_heads: int | None = Field(None, ge=1, validation_alias=AliasChoices("num_heads", "medusa_num_heads"))
    num_hidden_layers: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("num_hidden_layers", "medusa_num_layers")
    )
    vocab_size: int | None = Field(None, ge=1)
    truncated_vocab_size: int | None = Field(None, ge=1)
    original_lm_head: bool = False
    logit_scale: float = Field(1.0, gt=0, allow_inf_nan=False)


def _matches(names: Iterable[str]) -> bool:
    return bool(indices(names, _BLOCK))


def _read(checkpoint: HeadsImport) -> OriginalHeads:
    tensors, fields = checkpoint.tensors, checkpoint.source.fields(VllmFields)
    blocks = indices(tensors, _BLOCK)
    heads = checkpoint.resolve_count(
        "num_heads", fields.num_heads, count_from_indices(tensors, (i for i, _ in blocks), "heads")
    )
    layers = count_from_indices(tensors, (j for _, j in blocks), "blocks of a head")
    layers = checkpoint.resolve_count("num_hidden_layers", fields.num_hidden_layers, layers)
    hidden = tensors.size("blocks.0.layers.0.weight", 0)
    names = [[f"blocks.{i}.layers.{j}" for j in range(layers)] for i in range(heads)]
    biased = any(f"{name}.bias" in tensors for row in names for name in row)
    weight = stack_grid((tensors.take(f"{name}.weight", hidden, hidden) for name in row) for row in names)
    bias = weight.new_zeros(heads, layers, hidden)
    if biased:
        bias = stack_grid((tensors.take(f"{name}.bias", hidden) for name in row) for row in names)
    outputs = _output_names(tensors, heads, fields.original_lm_head)
    vocab, token_map = _vocabulary(checkpoint, fields, outputs)
    parameters = {"block_weight": weight, "block_bias": bias}
    if outputs:
        weights = [_output_weight(tensors, name, hidden, vocab, token_map) for name in outputs]
        parameters["own_weight"] = torch.stack(weights) * fields.logit_scale
    elif fields.logit_scale != 1:
        raise EntMTPError(
            f"heads: {checkpoint.source.config_path}: logit_scale {fields.logit_scale} of the model's own output layer"
            " can't be imported; save that layer scaled, as lm_head.weight"
        )
    return build_heads(
        OriginalMedusaHeads,
        parameters,
        token_map,
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=heads,
        num_layers=layers,
        outputs=len(outputs),
    )


def _output_names(tensors: Tensors, heads: int, original: bool) -> list[str]:
    """Names of the output layers' tensors: one for each head, one for all, or none."""
    if not original:
        return [f"lm_heads.{i}.weight" for i in range(heads)]
    return [name for name in ("lm_head.weight", "lm_heads.0.weight") if name in tensors][:1]


def _vocabulary(checkpoint: HeadsImport, fields: VllmFields, outputs: list[str]) -> tuple[int, torch.Tensor | None]:
    """The size of the model's vocabulary, and the heads' token map if they have one."""
    tensors = checkpoint.tensors
    output_size = tensors.size(outputs[0], 0) if outputs else None
    if "token_map" not in tensors:
        if fields.truncated_vocab_size not in (None, fields.vocab_size):
            raise tensors.error(
                f"truncated_vocab_size is {fields.truncated_vocab_size} but tensor 'token_map' is missing"
            )
        return output_size or checkpoint.vocab_size(fields.vocab_size), None
    vocab = checkpoint.vocab_size(fields.vocab_size)
    truncated = fields.truncated_vocab_size or vocab
    return vocab, tensors.take_tokens("token_map", truncated, vocab)


def _output_weight(
    tensors: Tensors, name: str, hidden: int, vocab: int, token_map: torch.Tensor | None
) -> torch.Tensor:
    """An output layer's weight, restricted to the tokens that the heads can guess."""
    if token_map is None:
        return tensors.take(name, vocab, hidden)
    if tensors.size(name, 0) == vocab:
        return tensors.take(name, vocab, hidden)[token_map.long()]
    return tensors.take(name, len(token_map), hidden)


VLLM = Layout("vLLM's (tensors like blocks.0.layers.0.weight)", _matches, _read, summary_of_blocks)
