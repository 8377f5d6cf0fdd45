"""Hydra heads in their authors' layout: ``hydra_lm_head.pt`` and ``config.json``.

The configuration has ``hydra_num_heads``, ``hydra_num_layers``, ``hydra_head_arch``, ``grounded_heads`` (whether a head
sees the tokens guessed before it), ``hidden_state_offset`` (how many layers before the last one the heads' input states
are taken) and ``base_model_name_or_path``.

Tensors of ``hydra_head_arch`` "mlp", for head i of n blocks:

- ``hydra_mlp.{i}.0.linear.weight [hidden, (i + 2) * hidden]``, ``.bias [hidden]`` and the same of
  ``hydra_mlp.{i}.0.res_connection``, the first block, over decoder state and embeddings; if not grounded
  ``[hidden, hidden]`` without ``res_connection``, as the others;
- ``hydra_mlp.{i}.{j}.linear.weight [hidden, hidden]`` and ``.bias [hidden]`` for j = 1 ... n - 1, the square blocks
  (one block's weights under all these names, since the authors' code repeats one module);
- ``hydra_lm_head.{i}.weight [vocab, hidden]`` and ``.bias [vocab]``, the head's output layer;
- ``input_embed_fn.weight [vocab, hidden]``, a copy of the model's input embeddings, which is not imported.

With dropout before each layer, the blocks' j are 1, 3, ... and the output layer is ``hydra_lm_head.{i}.1``.

"prefix-mlp" (Hydra++) has the same tensors, named as with dropout, and a decoder layer
(:mod:`entmtp.heads.importing.hydra_prefix`). "cross-attn" has ``cross_attn.{q,k,v,o}_proj``, ``mlp``, two norms and a
copy of the model's ``lm_head``; "eagle-attn" a decoder layer ``attn.`` after ``fc.weight [hidden, 2 * hidden]``.

Source: ``hydra/model`` and ``hydra/train/train.py`` in github.com/zankner/Hydra.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field

from entmtp.errors import EntMTPError
from entmtp.heads.hydra_plus_plus import HydraPlusPlusHeads
from entmtp.heads.importing.hydra_prefix import PREFIX, layer_config, prefix_layer
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
from entmtp.heads.importing.tensors import Tensors
from entmtp.heads.original import OriginalHeads
from entmtp.heads.original_hydra import OriginalHydraHeads
from entmtp.heads.original_medusa import OriginalMedusaHeads

_BLOCK = r"hydra_mlp\.(\d{1,3})\.(\d{1,3})\.linear\.weight"
_EMBEDDINGS = "input_embed_fn.weight"
_ARCHITECTURE_PREFIXES = {PREFIX: "prefix-mlp", "cross_attn.": "cross-attn", "attn.self_attn.": "eagle-attn"}
"""Name prefixes that only an architecture with attention has, and that architecture."""


class HydraFields(ConfigFields):
    hydra_num_heads: int | None = Field(None, ge=1)
    hydra_num_layers: int | None = Field(None, ge=1)
    hydra_head_arch: str = "mlp"
    grounded_heads: bool | None = None
    hidden_state_offset: int = 0


def _matches(names: Iterable[str]) -> bool:
    return any(name.startswith(("hydra_mlp.", "hydra_lm_head.", *_ARCHITECTURE_PREFIXES)) for name in names)


def _read(checkpoint: HeadsImport) -> OriginalHeads:
    tensors, fields = checkpoint.tensors, checkpoint.source.fields(HydraFields)
    architecture = _architecture(checkpoint, fields)
    blocks = indices(tensors, _BLOCK)
    if not blocks:
        raise tensors.error("tensor 'hydra_mlp.0.0.linear.weight' is missing")
    dropout = blocks[0][1] == 1
    heads = checkpoint.resolve_count(
        "hydra_num_heads", fields.hydra_num_heads, count_from_indices(tensors, (i for i, _ in blocks), "heads")
    )
    layers = count_from_indices(tensors, ((j - dropout) // (1 + dropout) for _, j in blocks), "blocks of a head")
    layers = checkpoint.resolve_count("hydra_num_layers", fields.hydra_num_layers, layers)
    block_numbers = [2 * layer + 1 if dropout else layer for layer in range(layers)]
    names = [[f"hydra_mlp.{i}.{number}" for number in block_numbers] for i in range(heads)]
    hidden = tensors.size(f"{names[0][0]}.linear.weight", 0)
    grounded = f"{names[0][0]}.res_connection.weight" in tensors
    if fields.grounded_heads not in (None, grounded):
        raise tensors.error(f"grounded_heads is {fields.grounded_heads} but the tensors are those of {grounded}")
    if architecture == "prefix-mlp" and not grounded:
        raise EntMTPError(
            f"heads: {checkpoint.source.weights} holds Hydra heads of architecture 'prefix-mlp' that do not see the"
            " tokens guessed before them; only grounded ones can be imported"
        )
    outputs = [f"hydra_lm_head.{i}.1" if dropout else f"hydra_lm_head.{i}" for i in range(heads)]
    vocab = tensors.size(f"{outputs[0]}.weight", 0)
    if _EMBEDDINGS in tensors:
        tensors.take(_EMBEDDINGS, vocab, hidden)
    parameters = {
        "own_weight": torch.stack([tensors.take(f"{name}.weight", vocab, hidden) for name in outputs]),
        "own_bias": torch.stack([tensors.take(f"{name}.bias", vocab) for name in outputs]),
    }
    if grounded:
        parameters |= _first_blocks(tensors, [row[0] for row in names], hidden)
    parameters |= _square_blocks(tensors, [row[grounded:] for row in names], hidden)
    kind: type[OriginalHeads] = OriginalHydraHeads if grounded else OriginalMedusaHeads
    layer: dict[str, Any] = {}
    if architecture == "prefix-mlp":
        kind = HydraPlusPlusHeads
        layer = {"layer": layer_config(checkpoint)}
        parameters |= prefix_layer(tensors, layer["layer"], vocab)
    return build_heads(
        kind,
        parameters,
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=heads,
        num_layers=layers,
        outputs=heads,
        output_bias=True,
        **layer,
    )


def _architecture(checkpoint: HeadsImport, fields: HydraFields) -> str:
    """Returns "mlp" or "prefix-mlp". Raises EntMTPError if configuration and tensors disagree, or for any other."""
    found = {
        kind for name in checkpoint.tensors for begin, kind in _ARCHITECTURE_PREFIXES.items() if name.startswith(begin)
    }
    architecture = min(found, default=fields.hydra_head_arch)
    if architecture not in ("mlp", "prefix-mlp"):
        raise EntMTPError(
            f"heads: {checkpoint.source.weights} holds Hydra heads of architecture {architecture!r}; only 'mlp' and"
            " 'prefix-mlp' can be imported, since the others run an attention layer on every guess"
        )
    if fields.hydra_head_arch != architecture or len(found) > 1:
        raise checkpoint.tensors.error(
            f"hydra_head_arch is {fields.hydra_head_arch!r} but there are tensors of {', '.join(sorted(found))}"
        )
    if fields.hidden_state_offset:
        raise EntMTPError(
            f"heads: {checkpoint.source.config_path}: hidden_state_offset is {fields.hidden_state_offset}; only heads"
            " that are given the last layer's states can be imported"
        )
    return architecture


def _first_blocks(tensors: Tensors, names: list[str], hidden: int) -> dict[str, torch.Tensor]:
    """The heads' first blocks, each as one matrix."""
    parts = ("res_connection", "linear")
    parameters = {}
    for i, name in enumerate(names):
        width = (i + 2) * hidden
        weights = [tensors.take(f"{name}.{part}.weight", hidden, width) for part in parts]
        parameters[f"first.{i}.weight"] = torch.cat(weights)
        parameters[f"first.{i}.bias"] = torch.cat([tensors.take(f"{name}.{part}.bias", hidden) for part in parts])
    return parameters


def _square_blocks(tensors: Tensors, names: list[list[str]], hidden: int) -> dict[str, torch.Tensor]:
    if not names[0]:
        empty = torch.zeros(len(names), 0, hidden)
        return {"block_weight": empty[..., None].expand(-1, -1, -1, hidden), "block_bias": empty}
    return square_blocks(tensors, [[f"{name}.linear" for name in row] for row in names], hidden)


HYDRA = Layout("Hydra's (tensors like hydra_mlp.0.0.linear.weight)", _matches, _read, summary_of_blocks)
