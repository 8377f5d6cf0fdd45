"""Medusa heads as their authors save them, and as TGI reads them.

Files: ``medusa_lm_head.pt`` or ``.safetensors`` beside ``config.json`` with ``medusa_num_heads``, ``medusa_num_layers``
(absent in the oldest) and ``base_model_name_or_path``. Examples: ``FasterDecoding/medusa-vicuna-7b-v1.3``, whose
configuration names 2 heads of 5; ``text-generation-inference/Mistral-7B-Instruct-v0.2-medusa``.

Tensors, for head i of n blocks (a wrapper model's prefix ``medusa_head.`` may stand before each):

- ``{i}.{j}.linear.weight [hidden, hidden]`` and ``{i}.{j}.linear.bias [hidden]`` for j = 0 ... n - 1, the blocks;
- ``{i}.{n}.weight [vocab, hidden]``, the head's output layer, without bias; where no head has one (the authors'
  ``medusa_model_legacy``, TGI's second version) the model's own output layer follows the blocks.

Sources: ``medusa/model/medusa_model.py`` and ``medusa_model_legacy.py`` in github.com/FasterDecoding/Medusa;
``server/text_generation_server/layers/medusa.py`` in github.com/huggingface/text-generation-inference.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field

from entmtp.heads.importing.layout import Layout, Reading, assembled, counted, indices, square_blocks
from entmtp.heads.importing.source import ConfigFields
from entmtp.heads.original import OriginalHeads
from entmtp.heads.original_medusa import OriginalMedusaHeads

_BLOCK = r"(\d{1,3})\.(\d{1,3})\.linear\.weight"
_OUTPUT = r"(\d{1,3})\.(\d{1,3})\.weight"


class MedusaFields(ConfigFields):
    medusa_num_heads: int | None = Field(None, ge=1)
    medusa_num_layers: int | None = Field(None, ge=1)
    vocab_size: int | None = Field(None, ge=1)


def _recognises(names: Iterable[str]) -> bool:
    return bool(indices(names, _BLOCK))


def _read(reading: Reading) -> OriginalHeads:
    tensors, said = reading.tensors, reading.source.fields(MedusaFields)
    blocks = indices(tensors, _BLOCK)
    heads = reading.agree("medusa_num_heads", said.medusa_num_heads, counted(tensors, (i for i, _ in blocks), "heads"))
    layers = counted(tensors, (j for _, j in blocks), "blocks of a head")
    layers = reading.agree("medusa_num_layers", said.medusa_num_layers, layers)
    hidden = tensors.size("0.0.linear.weight", 0)
    own = bool(indices(tensors, _OUTPUT))
    vocab = tensors.size(f"0.{layers}.weight", 0) if own else reading.vocabulary(said.vocab_size)
    names = [[f"{i}.{j}.linear" for j in range(layers)] for i in range(heads)]
    parameters = square_blocks(tensors, names, hidden)
    if own:
        rows = [tensors.take(f"{i}.{layers}.weight", vocab, hidden) for i in range(heads)]
        parameters["own_weight"] = torch.stack(rows)
    return assembled(
        OriginalMedusaHeads,
        parameters,
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=heads,
        num_layers=layers,
        outputs=heads if own else 0,
    )


MEDUSA = Layout("Medusa's and TGI's (tensors like 0.0.linear.weight)", _recognises, _read)
