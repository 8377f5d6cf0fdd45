"""Decoder layers of draft heads in one call, on weights and inputs that are rounded to int8 in blocks.

The first layer receives a token's embedding and a state of its predecessor, each after a norm of its own. The sums are
those of :mod:`entmtp.models.kernels.fused_decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass
from typing import Any

import torch

from entmtp.models.cache import TreeLayer
from entmtp.models.kernels.block_weight import BlockWeight, Weight
from entmtp.models.kernels.compiled import FORMATS, Layer, Matrix, Model, library
from entmtp.models.kernels.draft_weight import draft_weight
from entmtp.models.kernels.fused_decoder import run_pass
from entmtp.models.kernels.fused_linear import DraftLinear
from entmtp.models.kernels.fused_top_k import TopK
from entmtp.models.kernels.packed_weight import PackedWeight, format_of, pack
from entmtp.models.kernels.rotary_table import RotaryTable
from entmtp.models.masks import AttentionWindow


@dataclass(frozen=True)
class DraftLayer:
    """Weights of a layer: matrices ``[out, in]`` and vectors, which are None where the layer has none.

    Attributes:
        qkv: of queries, keys and values, one below the other.
        input_norm: of the states before attention; ``middle_norm`` is of those after it.
    """

    qkv: Weight
    output: Weight
    gates: Weight
    values: Weight
    down: Weight
    input_norm: torch.Tensor
    middle_norm: torch.Tensor
    qkv_bias: torch.Tensor | None = None
    output_bias: torch.Tensor | None = None
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None

    @property
    def matrices(self) -> dict[str, Weight]:
        """The matrices after attention's inputs, by their names in a layer's structure."""
        return {name: getattr(self, name) for name in ("output", "gates", "values", "down")}

    @property
    def vectors(self) -> dict[str, torch.Tensor]:
        """The vectors that the layer has, by their names in its structure."""
        names = "input_norm", "middle_norm", "qkv_bias", "output_bias", "query_norm", "key_norm"
        found = {name: getattr(self, name) for name in names}
        return {name: vector.detach().contiguous() for name, vector in found.items() if vector is not None}


class FusedDraftDecoder:
    """Draft heads' own decoder, for inference in float32 on a CPU."""

    def __init__(
        self,
        layers: Sequence[DraftLayer],
        embeddings: Weight,
        embedding_norm: torch.Tensor,
        norm: torch.Tensor,
        rotary: Any,
        output: Weight,
        *,
        kv_heads: int,
        head_dim: int,
        eps: float,
        adds_to_normalized: bool,
        keeps_states: bool,
    ) -> None:
        """Pack the weights.

        ``output`` is the weight of the output layer that :meth:`guess` is called with. With ``adds_to_normalized`` the
        first layer's output is added to the normalized state. ``keeps_states`` hands out the states before the last
        ``norm``, otherwise those after it.
        """
        packed = [[pack(draft_weight(each)) for each in (layer.qkv, *layer.matrices.values())] for layer in layers]
        vectors = [layer.vectors for layer in layers]
        structures = [_structure(*each) for each in zip(layers, packed, vectors, strict=True)]
        self._layers = (Layer * len(layers))(*structures)
        table = (embeddings.rows if isinstance(embeddings, BlockWeight) else embeddings.detach()).contiguous()
        norms = norm.detach().contiguous(), embedding_norm.detach().contiguous()
        # The structures have the addresses alone.
        self._memory = packed, vectors, table, norms
        self._rotary = RotaryTable(rotary)
        formats = [each.format for row in packed for each in row]
        self._library = library({format_of(embeddings), format_of(draft_weight(output)), *formats})
        inner, hidden = layers[0].gates.shape
        self._model = Model(
            embeddings=table.data_ptr(),
            layers=addressof(self._layers),
            norm=norms[0].data_ptr(),
            embedding_norm=norms[1].data_ptr(),
            row_bytes=table.stride(0) * table.element_size(),
            count=len(layers),
            hidden=hidden,
            inner=inner,
            heads=layers[0].output.shape[1] // head_dim,
            kv_heads=kv_heads,
            dim=head_dim,
            eps=eps,
            scaling=head_dim**-0.5,
            format=FORMATS.index(format_of(embeddings)),
            digits=DraftLinear.digits,
            adds_to_normalized=adds_to_normalized,
            keeps_states=keeps_states,
        )

    def forward(
        self, tokens: torch.Tensor, inputs: torch.Tensor, window: AttentionWindow, layer: TreeLayer
    ) -> torch.Tensor:
        """States ``[batch, n, hidden_size]`` of ``tokens [batch, n]``, which see the rows of ``window``.

        ``inputs [batch, n, hidden_size]`` are states of the tokens' predecessors. ``layer`` is the first layer's cache;
        token 0 of a text has no entry there.
        """
        return self._run(tokens, inputs, window, layer)

    def guess(
        self,
        tokens: torch.Tensor,
        inputs: torch.Tensor,
        window: AttentionWindow,
        layer: TreeLayer,
        output: DraftLinear,
        vocabulary: torch.Tensor,
        count: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States as :meth:`forward`, and the ``count`` likeliest tokens after each with their log-probabilities.

        Both are ``[batch, n, count]``, by the ``output`` layer over a ``vocabulary`` of int32 tokens.
        """
        logits = torch.empty(*tokens.shape, output.matrix.out)
        found = TopK.of(logits, vocabulary, count)
        states = self._run(tokens, inputs, window, layer, output, logits, found)
        return states, found.tokens, found.log_probs

    def _run(
        self, tokens: torch.Tensor, inputs: torch.Tensor, window: AttentionWindow, layer: TreeLayer, *guessing: Any
    ) -> torch.Tensor:
        states = inputs.clone(memory_format=torch.contiguous_format)
        mapping, keys = layer.table.slot_mapping, layer.keys
        run_pass(
            self._library, self._model, tokens, window, mapping, keys, self._rotary, states, *guessing, first_row=2
        )
        return states


def _structure(layer: DraftLayer, packed: Sequence[PackedWeight], vectors: dict[str, torch.Tensor]) -> Layer:
    matrices = dict(zip(layer.matrices, packed[1:], strict=True))
    return Layer(
        qkv=(Matrix * 3)(packed[0].matrix),
        **{name: weight.matrix for name, weight in matrices.items()},
        **{name: vector.data_ptr() for name, vector in vectors.items()},
    )
