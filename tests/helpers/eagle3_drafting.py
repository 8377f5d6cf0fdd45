"""Drafting with heads that read the model's states at several depths, on states that transformers computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.eagle3 import Eagle3Heads
from entmtp.heads.importing.import_heads import import_heads
from entmtp.heads.interface import AcceptedPaths, Proposal
from entmtp.models.backbone import Backbone
from entmtp.models.cache import TreeCache
from entmtp.models.kernels.block_weight import dequantized
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.eagle3_checkpoints import Eagle3Checkpoint
from tests.helpers.published_checkpoints import Model
from tests.helpers.tiny_models import tiny_model

LAYERS = 8


def deep_model() -> PreTrainedModel:
    """A tiny Llama with enough layers for the default features."""
    return tiny_model("llama", num_hidden_layers=LAYERS, initializer_range=0.1)


def seen_model(backbone: Backbone) -> Model:
    """The parts of a model that checkpoints are made for."""
    output = backbone.model.get_output_embeddings().weight.detach()
    return Model(output.clone(), dequantized(backbone.embeddings).detach().clone())


def imported_eagle3(checkpoint: Eagle3Checkpoint, backbone: Backbone, folder: Path) -> Eagle3Heads:
    """Imports a checkpoint without naming a model, and loads it with one."""
    heads = imported_folder(checkpoint.save(folder / "published"), backbone, folder / "ours")
    assert isinstance(heads, Eagle3Heads)
    return heads


def imported_folder(published: Path, backbone: Backbone, ours: Path) -> DraftHeads:
    """Imports the checkpoint in a folder without naming a model, and loads it with one."""
    import_heads(str(published), ours, None, lambda text: None)
    return load_heads(ours, backbone)


@torch.inference_mode()
def features_of(model: PreTrainedModel, tokens: Sequence[int], layers: Sequence[int]) -> torch.Tensor:
    """The states that enter ``layers`` of the model, side by side: ``[n, len(layers) * hidden_size]``."""
    states = model(input_ids=torch.tensor([list(tokens)]), output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[layer][0] for layer in layers], dim=-1)


class Drafting:
    """Slots with a drafter, and the text of each, whose last token is the root."""

    def __init__(self, heads: DraftHeads, model: PreTrainedModel, slots: int = 2, capacity: int = 96) -> None:
        layout = heads.cache_layout
        rows = capacity + layout.spare_rows
        self.cache = TreeCache(layout.layers, slots, rows, state_buffers=layout.state_buffers)
        self.drafter = heads.drafter(self.cache)
        self.texts: list[list[int]] = [[] for _ in range(slots)]
        self._heads, self._model = heads, model

    def features(self, slot: int) -> torch.Tensor:
        """Features of a slot's text, without its root."""
        return features_of(self._model, self.texts[slot][:-1], self._heads.feature_layers)

    @torch.inference_mode()
    def prefill(self, slot: int, prompt: Sequence[int], root: int, cuts: Sequence[int] = ()) -> None:
        """Reads a prompt in parts that end at ``cuts``, and its root."""
        features = features_of(self._model, prompt, self._heads.feature_layers)
        for begin, end in zip([0, *cuts], [*cuts, len(prompt)], strict=True):
            self.cache.append([slot], [end - begin])
            self.drafter.prefill(slot, features[begin:end], prompt[begin:end])
        self.texts[slot] = [*prompt, root]
        self.drafter.start(slot, torch.tensor(root))

    @torch.inference_mode()
    def draft(self, slots: Sequence[int], trees: Sequence[Topology]) -> Proposal:
        """Drafts a tree for each of ``slots``."""
        roots = torch.tensor([self.texts[slot][-1] for slot in slots])
        batch = TreeBatch.of(trees)
        return self.drafter.draft(tuple(slots), roots, batch) if batch.max_depth else Proposal.of_roots(roots)

    @torch.inference_mode()
    def accept(
        self, slots: Sequence[int], drafted: Proposal, trees: Sequence[Topology], nodes: Sequence[int], roots: list[int]
    ) -> None:
        """Commits the path to each of ``nodes``, with the next roots."""
        batch, index = TreeBatch.of(trees), tuple(slots)
        paths = [tree.lineages[node] for tree, node in zip(trees, nodes, strict=True)]
        width = max(map(len, paths))
        columns = torch.zeros(len(slots), width, dtype=torch.int64)
        features = torch.randn(len(slots), batch.width, self._heads.feature_size)
        for row, (slot, path, root) in enumerate(zip(slots, paths, roots, strict=True)):
            columns[row] = torch.tensor([*path, *range(path[-1] + 1, path[-1] + 1 + width)][:width])
            before = len(self.texts[slot]) - 1
            self.texts[slot] = [*self.texts[slot][:-1], *drafted.tokens[row, list(path)].tolist(), root]
            features[row, list(path)] = self.features(slot)[before:]
        counts = torch.tensor([len(path) for path in paths])
        columns = columns.clamp(max=batch.width - 1)
        self.cache.map_slots(self.cache.kv_range(index, batch.width, padded=True), batch.real)
        self.cache.commit(index, columns, counts)
        last = torch.tensor([path[-1] for path in paths])
        accepted = AcceptedPaths(drafted.tokens, features, columns, counts, torch.tensor(roots), last, padded=False)
        self.drafter.append(index, accepted)
        self.cache.sync_lengths(index, counts.tolist())

    @torch.inference_mode()
    def begin_again(self, source: int, target: int, length: int) -> None:
        """Starts ``target`` with the first ``length`` tokens of ``source``, one more token and a root."""
        self.cache.copy_prefix(source, target, length)
        self.texts[target] = [*self.texts[source][:length], 3, 4]
        self.cache.append([target], [1])
        self.drafter.prefill(target, self.features(target)[length:], [3])
        self.drafter.start(target, torch.tensor(4))

    @torch.inference_mode()
    def swap(self) -> None:
        """Exchanges the first two slots."""
        self.cache.swap(0, 1)
        self.drafter.states[:2] = self.drafter.states[[1, 0]]
        self.texts[:2] = reversed(self.texts[:2])

    @torch.inference_mode()
    def entries(self, slot: int) -> list[torch.Tensor]:
        """Entries of the draft cache for a slot's text and root; token 0 has no keys and no state before it."""
        self.drafter.expand((slot,), torch.tensor(self.texts[slot][-1:]))  # makes what may have been deferred
        end = len(self.texts[slot]) + 1
        rows = [buffer[slot, :, 2:end] for layer in self.cache.tree_layers for buffer in (layer.keys, layer.values)]
        return [*rows, self.cache.state_buffers[0][slot, :, 1 : end - 1]]
