"""Decoder layers of draft heads in one call, on weights and inputs that are rounded to int8 in blocks.

The first layer receives a token's embedding and a state of its predecessor, each after a norm of its own. The sums are
those of :mod:`entmtp.models.kernels.fused_decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, byref
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from entmtp.models.cache import TreeLayer
from entmtp.models.kernels.block_weight import BlockWeight, Weight
from entmtp.models.kernels.compiled import (
    FORMATS,
    DraftRows,
    Layer,
    Level,
    Matrix,
    Model,
    Pass,
    Paths,
    library,
    profiled,
)
from entmtp.models.kernels.draft_weight import draft_weight
from entmtp.models.kernels.fused_decoder import NO_WINDOW, run_pass
from entmtp.models.kernels.fused_linear import DraftLinear
from entmtp.models.kernels.fused_projection import FusedProjection
from entmtp.models.kernels.fused_top_k import TopK
from entmtp.models.kernels.packed_weight import PackedWeight, format_of, pack
from entmtp.models.kernels.rotary_table import RotaryTable
from entmtp.models.masks import AttentionWindow

_FIRST_ROW = 2
"""Token 0 of a text has no predecessor, so its row has no keys."""


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


class Accepted(Protocol):
    """Accepted paths of trees of ``width`` nodes, on a CPU; tokens are int64 and features float32.

    Attributes:
        tokens: ``[batch, width]``.
        features: ``[batch, width, features]``.
        nodes: ``[batch, n]`` the paths, the root first; any nodes from ``counts`` on.
        counts: ``[batch]`` at least 1.
        roots: ``[batch]`` tokens after the paths.
    """

    @property
    def tokens(self) -> torch.Tensor: ...

    @property
    def features(self) -> torch.Tensor: ...

    @property
    def nodes(self) -> torch.Tensor: ...

    @property
    def counts(self) -> torch.Tensor: ...

    @property
    def roots(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class StoredRows:
    """Rows that draft heads store of the tokens in each slot, on a CPU.

    Attributes:
        layer: keys and values of the first layer.
        inputs: ``[slots, 1, rows, hidden_size]`` float32; row p has the state of the token at p - 1.
        deferred: ``[slots, 1, rows, 1]`` int32; one more than the token at p if its keys and values are still to be
            made, else 0.
        states: ``[slots, 1, hidden_size]`` float32, the layers' states of the roots.
    """

    layer: TreeLayer
    inputs: torch.Tensor
    deferred: torch.Tensor
    states: torch.Tensor

    def structure(self) -> DraftRows:
        """Addresses, for the kernels."""
        tensors = self.inputs, self.deferred, self.states, self.layer.table.device_lengths
        return DraftRows(*(tensor.data_ptr() for tensor in tensors))


@dataclass(frozen=True)
class DraftedLevel:
    """Guessed tokens of one depth in trees, on a CPU.

    Attributes:
        slots: ``[batch]``.
        prefix_lengths, start, position: ``[batch]`` tokens of the text that each node attends to, cache rows after
            which the trees' nodes are stored, and positions of the roots.
        tokens: ``[batch, n]``.
        tree_mask: ``[batch, n, rows]`` bool, which nodes a token attends to; the last ``n`` are the level's own.
        depths: ``[rows]`` int64, of the nodes.
        depth: that of the tokens.
        last: first cache row that no token attends to.
    """

    slots: torch.Tensor
    prefix_lengths: torch.Tensor
    start: torch.Tensor
    position: torch.Tensor
    tokens: torch.Tensor
    tree_mask: np.ndarray
    depths: np.ndarray
    depth: int
    last: int

    def structure(self) -> tuple[Level, list[Any]]:
        """Addresses, and what must stay alive with them."""
        tensors = [each.contiguous() for each in (self.tokens, self.prefix_lengths, self.start, self.position)]
        arrays = [np.ascontiguousarray(each) for each in (self.depths, self.tree_mask)]
        addresses = *(each.data_ptr() for each in tensors), *(each.ctypes.data for each in arrays)
        return Level(*addresses, len(self.depths), self.depth), [tensors, arrays]


def _addresses(accepted: Accepted) -> tuple[Paths, list[torch.Tensor]]:
    """Addresses of accepted paths, and the tensors that must stay alive with them."""
    tensors = accepted.features, accepted.tokens, accepted.nodes, accepted.counts, accepted.roots
    contiguous = [tensor.contiguous() for tensor in tensors]
    return Paths(*(tensor.data_ptr() for tensor in contiguous), accepted.tokens.shape[1]), contiguous


class FusedDraftDecoder:
    """Draft heads' own decoder, for inference in float32 on a CPU.

    Attributes:
        projection: what turns the model's features into states.
    """

    def __init__(
        self,
        projection: FusedProjection,
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
        """Pack the layers' weights.

        ``output`` is the weight of the output layer that :meth:`guess_level` is called with. With
        ``adds_to_normalized`` the first layer's output is added to the normalized state. ``keeps_states`` hands out the
        states before the last ``norm``, otherwise those after it.
        """
        self.projection = projection
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
        states = inputs.clone(memory_format=torch.contiguous_format)
        pool = layer.table.slot_mapping, layer.keys, self._rotary
        run_pass(self._library, self._model, tokens, window, *pool, states, first_row=_FIRST_ROW)
        return states

    def guess_level(
        self,
        level: DraftedLevel,
        inputs: torch.Tensor,
        rows: StoredRows,
        output: DraftLinear,
        vocabulary: torch.Tensor,
        count: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States ``[batch, n, hidden_size]`` of a level, and the ``count`` likeliest tokens after each of its tokens.

        Those and their log-probabilities are ``[batch, n, count]``, by the ``output`` layer over a ``vocabulary`` of
        int32 tokens. ``inputs [batch, n, hidden_size]`` are states of the tokens' parents.
        """
        states = inputs.clone(memory_format=torch.contiguous_format)
        found = TopK.of(torch.empty(*level.tokens.shape, output.matrix.out), vocabulary, count)
        structure, _alive = level.structure()
        run = self._pass(level.slots, rows, level.tokens.shape[1], level.last)
        with profiled("entmtp::draft"):
            self._library.entmtp_draft(
                byref(self._model),
                byref(run),
                byref(structure),
                states.data_ptr(),
                byref(output.matrix),
                None if output.bias is None else output.bias.data_ptr(),
                byref(found.structure()),
            )
        return states, found.tokens, found.log_probs

    def logits(self, states: torch.Tensor, output: DraftLinear) -> torch.Tensor:
        """Logits ``[..., vocab_size]`` of states ``[..., hidden_size]``, by the ``output`` layer."""
        return self._guess(states, output, None, 0)[0]

    def top_k(
        self, states: torch.Tensor, output: DraftLinear, vocabulary: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``count`` likeliest tokens after states ``[..., hidden_size]``, as in :meth:`guess_level`."""
        _, found = self._guess(states, output, vocabulary, count)
        assert found is not None
        return found.tokens, found.log_probs

    def append(self, accepted: Accepted, slots: torch.Tensor, rows: StoredRows, last: int) -> None:
        """Append accepted paths of ``slots [batch]``, which the lengths include, and the roots after them.

        No row from ``last`` on is theirs.
        """
        run = self._pass(slots, rows, accepted.nodes.shape[1], last)
        paths, _alive = _addresses(accepted)
        structures = self._model, self.projection.structure, run, paths, rows.structure()
        with profiled("entmtp::append"):
            self._library.entmtp_append(*map(byref, structures))

    def defer(self, accepted: Accepted, slots: torch.Tensor, rows: StoredRows) -> None:
        """As :meth:`append` for paths of one token. Keys, values and states are made by :meth:`settle`."""
        run = self._pass(slots, rows, 1, 0)
        paths, _alive = _addresses(accepted)
        with profiled("entmtp::defer"):
            self._library.entmtp_defer(*map(byref, (self.projection.structure, run, paths, rows.structure())))

    def settle(self, slots: torch.Tensor, rows: StoredRows, ends: torch.Tensor, last: int) -> None:
        """Append what was deferred of the tokens before positions ``ends [batch]``; ``last`` is as in append."""
        run = self._pass(slots, rows, 1, last)
        with profiled("entmtp::settle"):
            self._library.entmtp_settle(byref(self._model), byref(run), byref(rows.structure()), ends.data_ptr())

    @property
    def appends(self) -> bool:
        """Whether :meth:`append` is possible: positions must have the same angles in any text."""
        return self._rotary.is_fixed

    def _pass(self, slots: torch.Tensor, rows: StoredRows, n: int, last: int) -> Pass:
        keys = rows.layer.keys
        return Pass(
            slots=slots.data_ptr(),
            rotary=self._rotary.fixed_rows(last).data_ptr(),
            pool=keys.data_ptr(),
            batch=len(slots),
            n=n,
            first=_FIRST_ROW,
            last=last,
            pool_slots=keys.shape[0],
            capacity=keys.shape[2],
            window=NO_WINDOW,
            threads=torch.get_num_threads(),
        )

    def _guess(
        self, states: torch.Tensor, output: DraftLinear, vocabulary: torch.Tensor | None, count: int
    ) -> tuple[torch.Tensor, TopK | None]:
        states = states.contiguous()
        logits = torch.empty(*states.shape[:-1], output.matrix.out)
        found = None if vocabulary is None else TopK.of(logits, vocabulary, count)
        with profiled("entmtp::guess"):
            self._library.entmtp_guess(
                byref(self._model),
                states.data_ptr(),
                states.numel() // states.shape[-1],
                byref(output.matrix),
                None if output.bias is None else output.bias.data_ptr(),
                logits.data_ptr(),
                None if found is None else byref(found.structure()),
                torch.get_num_threads(),
            )
        return logits, found


def _structure(layer: DraftLayer, packed: Sequence[PackedWeight], vectors: dict[str, torch.Tensor]) -> Layer:
    matrices = dict(zip(layer.matrices, packed[1:], strict=True))
    return Layer(
        qkv=(Matrix * 3)(packed[0].matrix),
        **{name: weight.matrix for name, weight in matrices.items()},
        **{name: vector.data_ptr() for name, vector in vectors.items()},
    )
