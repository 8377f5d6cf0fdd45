"""Medusa heads in their authors' layout, which TGI reads too.

Files: ``medusa_lm_head.pt`` or ``.safetensors``, and ``config.json`` with ``medusa_num_heads``, ``medusa_num_layers``
(missing in the oldest) and ``base_model_name_or_path``. Examples: ``FasterDecoding/medusa-vicuna-7b-v1.3``, whose
configuration names 2 heads of 5; ``text-generation-inference/Mistral-7B-Instruct-v0.2-medusa``.

Tensors, for head i of n blocks (each name may have a wrapper model's prefix ``medusa_head.``):

- ``{i}.{j}.linear.weight [hidden, hidden]`` and ``{i}.{j}.linear.bias [hidden]`` for j = 0 ... n - 1, the blocks;
- ``{i}.{n}.weight [vocab, hidden]``, the head's output layer, without bias. If no head has one (the authors'
  ``medusa_model_legacy``, TGI's second version), the model's own output layer follows the blocks.

Sources: ``medusa/model/medusa_model.py`` and ``medusa_model_legacy.py`` in github.com/FasterDecoding/Medusa;
``server/text_generation_server/layers/medusa.py`` in github.com/huggingface/text-generation-inference.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field

from entmtp.heads.importing.layout import (
    HeadsImport,
    Layout,
    build_heads,
    count_from_indices,
    indices,
    square_blocks,
    summary_of_blocks,
)
from entmtp.heads.importing.source import ConfigFields
from entmtp.heads.original import OriginalHeads
from entmtp.heads.original_medusa import OriginalMedusaHeads

_BLOCK = r"(\d{1,3})\.(\d{1,3})\.linear\.weight"
_OUTPUT = r"(\d{1,3})\.(\d{1,3})\.weight"


class MedusaFields(ConfigFields):
    medusa_num_heads: int | None = Field(None, ge=1)
    medusa_num_layers: int | None = Field(None, ge=1)
    vocab_size: int | None = Field(None, ge=1)


def _matches(names: Iterable[str]) -> bool:
    return bool(indices(names, _BLOCK))


def _read(checkpoint: HeadsImport) -> OriginalHeads:
    tensors, fields = checkpoint.tensors, checkpoint.source.fields(MedusaFields)
    blocks = indices(tensors, _BLOCK)
    heads = checkpoint.resolve_count(
        "medusa_num_heads", fields.medusa_num_heads, count_from_indices(tensors, (i for i, _ in blocks), "heads")
    )
    layers = count_from_indices(tensors, (j for _, j in blocks), "blocks of a head")
    layers = checkpoint.resolve_count("medusa_num_layers", fields.medusa_num_layers, layers)
    hidden = tensors.size("0.0.linear.weight", 0)
    own = bool(indices(tensors, _OUTPUT))
    vocab = tensors.size(f"0.{layers}.weight", 0) if own else checkpoint.vocab_size(fields.vocab_size)
    names = [[f"{i}.{j}.linear" for j in range(layers)] for i in range(heads)]
    parameters = square_blocks(tensors, names, hidden)
    if own:
        outputs = [tensors.take(f"{i}.{layers}.weight", vocab, hidden) for i in range(heads)]
        parameters["own_weight"] = torch.stack(outputs)
    return build_heads(
        OriginalMedusaHeads,
        parameters,
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=heads,
        num_layers=layers,
        outputs=heads if own else 0,
    )


MEDUSA = Layout("Medusa's and TGI's (tensors like 0.0.linear.weight)", _matches, _read, summary_of_blocks)
