"""Medusa heads in vLLM's layout.

Files: ``model.safetensors`` beside ``config.json`` with ``model_type`` "medusa", ``hidden_size``, ``vocab_size``,
``num_heads``, ``num_hidden_layers`` (also under Medusa's own names), and where wanted ``truncated_vocab_size``,
``original_lm_head``, ``medusa_fc_bias``, ``logit_scale``.

Tensors, for head i of n blocks (the prefix ``medusa_heads.`` may stand before each):

- ``blocks.{i}.layers.{j}.weight [hidden, hidden]`` for j = 0 ... n - 1, and ``.bias [hidden]`` with ``medusa_fc_bias``;
- ``lm_heads.{i}.weight [rows, hidden]``, without bias. With ``original_lm_head`` one layer serves all heads:
  ``lm_head.weight`` or ``lm_heads.0.weight``, or the model's own where there is neither;
- ``token_map [truncated]``, where ``truncated_vocab_size`` is less than ``vocab_size``: the tokens that the heads can
  guess, row by row. Output layers may be cut to these rows already or hold all of the vocabulary's.

Logits are multiplied by ``logit_scale``. Sources: ``vllm/model_executor/models/medusa.py`` and
``vllm/transformers_utils/configs/medusa.py`` in github.com/vllm-project/vllm.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import AliasChoices, Field

from entmtp.errors import EntMTPError
from entmtp.heads.importing.layout import Layout, Reading, assembled, counted, indices, stacked
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


def _recognises(names: Iterable[str]) -> bool:
    return bool(indices(names, _BLOCK))


def _read(reading: Reading) -> OriginalHeads:
    tensors, said = reading.tensors, reading.source.fields(VllmFields)
    blocks = indices(tensors, _BLOCK)
    heads = reading.agree("num_heads", said.num_heads, counted(tensors, (i for i, _ in blocks), "heads"))
    layers = counted(tensors, (j for _, j in blocks), "blocks of a head")
    layers = reading.agree("num_hidden_layers", said.num_hidden_layers, layers)
    hidden = tensors.size("blocks.0.layers.0.weight", 0)
    names = [[f"blocks.{i}.layers.{j}" for j in range(layers)] for i in range(heads)]
    biased = any(f"{name}.bias" in tensors for row in names for name in row)
    weight = stacked((tensors.take(f"{name}.weight", hidden, hidden) for name in row) for row in names)
    bias = weight.new_zeros(heads, layers, hidden)
    if biased:
        bias = stacked((tensors.take(f"{name}.bias", hidden) for name in row) for row in names)
    outputs = _output_names(tensors, heads, said.original_lm_head)
    vocab, token_map = _vocabulary(reading, said, outputs)
    parameters = {"block_weight": weight, "block_bias": bias}
    if outputs:
        rows = [_rows(tensors, name, hidden, vocab, token_map) for name in outputs]
        parameters["own_weight"] = torch.stack(rows) * said.logit_scale
    elif said.logit_scale != 1:
        raise EntMTPError(
            f"heads: {reading.source.config_path}: logit_scale {said.logit_scale} of the model's own output layer can't"
            " be imported; save that layer scaled, as lm_head.weight"
        )
    return assembled(
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
    """The output layers' tensors: one for each head, one for all, or none."""
    if not original:
        return [f"lm_heads.{i}.weight" for i in range(heads)]
    return [name for name in ("lm_head.weight", "lm_heads.0.weight") if name in tensors][:1]


def _vocabulary(reading: Reading, said: VllmFields, outputs: list[str]) -> tuple[int, torch.Tensor | None]:
    """The size of the model's vocabulary and, where the heads' is smaller, its tokens."""
    tensors = reading.tensors
    rows = tensors.size(outputs[0], 0) if outputs else None
    if "token_map" not in tensors:
        if said.truncated_vocab_size not in (None, said.vocab_size):
            raise tensors.wrong(
                f"truncated_vocab_size is {said.truncated_vocab_size} but tensor 'token_map' is missing"
            )
        return rows or reading.vocabulary(said.vocab_size), None
    vocab = reading.vocabulary(said.vocab_size)
    truncated = said.truncated_vocab_size or vocab
    return vocab, tensors.take_tokens("token_map", truncated, vocab)


def _rows(tensors: Tensors, name: str, hidden: int, vocab: int, token_map: torch.Tensor | None) -> torch.Tensor:
    """An output layer's rows of the tokens that the heads can guess."""
    if token_map is None:
        return tensors.take(name, vocab, hidden)
    if tensors.size(name, 0) == vocab:
        return tensors.take(name, vocab, hidden)[token_map.long()]
    return tensors.take(name, len(token_map), hidden)


VLLM = Layout("vLLM's (tensors like blocks.0.layers.0.weight)", _recognises, _read)
