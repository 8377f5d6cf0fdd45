"""The DFlash formula (arXiv 2602.06036) in plain loops over positions, heads and keys, in float64 and without a cache.

It reads published tensors by their published names, and shares no code with the heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tests.helpers.dflash_checkpoints import MASK, DFlashCheckpoint
from tests.helpers.published_checkpoints import Model


class DFlashReference:
    """Published heads on a model's embeddings and output layer."""

    def __init__(self, checkpoint: DFlashCheckpoint, model: Model) -> None:
        self._w = {
            name: each.double() if each.is_floating_point() else each for name, each in checkpoint.tensors.items()
        }
        self._o, self._checkpoint = checkpoint.options, checkpoint
        rope = checkpoint.config.get("rope_parameters") or checkpoint.config.get("transformer_layer_config") or {}
        self._theta: float = rope["rope_theta"] if rope else checkpoint.config["rope_theta"]
        self._embeddings = self._w.get("embed_tokens.weight", model.embeddings.double())
        self._output = self._w.get("lm_head.weight", model.output.double()[checkpoint.guessable])

    def block(self, features: torch.Tensor, root: int) -> list[torch.Tensor]:
        """``h`` of the whole block of a root after n tokens; ``features [n, width]`` are the model's, of those."""
        contexts = [self._rms(self._w["fc.weight"] @ row.double(), "hidden_norm.weight") for row in features]
        tokens = [root, *[MASK] * (self._checkpoint.block - 1)]
        block = [self._embeddings[token] for token in tokens]
        for layer in range(self._o["num_hidden_layers"]):
            block = self._decoder_layer(f"layers.{layer}.", contexts, block)
        return [self._rms(state, "norm.weight") for state in block]

    def logits(self, block: Sequence[torch.Tensor], path: Sequence[int]) -> torch.Tensor:
        """Logits over the draft vocabulary for the token after ``path``, which begins with the block's root."""
        logits = self._output @ block[self._checkpoint.first + len(path) - 1]
        if "markov_head.markov_w1.weight" in self._w:
            previous = self._w["markov_head.markov_w1.weight"][path[-1]]
            logits = logits + self._w["markov_head.markov_w2.weight"] @ previous
        return logits

    def log_probs(self, block: Sequence[torch.Tensor], path: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of :meth:`logits`."""
        return self.logits(block, path).log_softmax(-1)

    def confidence(self, block: Sequence[torch.Tensor], path: Sequence[int]) -> float:
        """The heads' estimate that the token after ``path`` is accepted."""
        read = block[self._checkpoint.first + len(path) - 1]
        weight = self._w["confidence_head.proj.weight"][0]
        if len(weight) > len(read):
            read = torch.cat([read, self._w["markov_head.markov_w1.weight"][path[-1]]])
        return float(torch.sigmoid(weight @ read + self._w["confidence_head.proj.bias"][0]))

    def _decoder_layer(
        self, prefix: str, contexts: list[torch.Tensor], block: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        normed = [self._rms(state, f"{prefix}input_layernorm.weight") for state in block]
        read = [*contexts, *normed]  # the text's are not normalised again
        keys = [self._heads(prefix, "k", states, at) for at, states in enumerate(read)]
        values = [self._heads(prefix, "v", states, at) for at, states in enumerate(read)]
        outputs = []
        for at, state in enumerate(block):
            queries = self._heads(prefix, "q", normed[at], len(contexts) + at)
            state = state + self._w[f"{prefix}self_attn.o_proj.weight"] @ _attended(queries, keys, values)
            inner = self._rms(state, f"{prefix}post_attention_layernorm.weight")
            gate, up = (self._w[f"{prefix}mlp.{name}_proj.weight"] @ inner for name in ("gate", "up"))
            outputs.append(state + self._w[f"{prefix}mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up))
        return outputs

    def _heads(self, prefix: str, name: str, states: torch.Tensor, position: int) -> list[torch.Tensor]:
        """Queries, keys or values of a position, by head."""
        heads = (self._w[f"{prefix}self_attn.{name}_proj.weight"] @ states).split(self._o["head_dim"])
        if name == "v":
            return list(heads)
        return [self._turned(self._rms(head, f"{prefix}self_attn.{name}_norm.weight"), position) for head in heads]

    def _turned(self, head: torch.Tensor, position: int) -> torch.Tensor:
        half = len(head) // 2
        turned = head.clone()
        for i in range(half):
            angle = position * self._theta ** (-2 * i / len(head))
            first, second = head[i], head[i + half]
            turned[i] = first * math.cos(angle) - second * math.sin(angle)
            turned[i + half] = second * math.cos(angle) + first * math.sin(angle)
        return turned

    def _rms(self, states: torch.Tensor, name: str) -> torch.Tensor:
        return self._w[name] * states / torch.sqrt((states * states).mean() + self._o["rms_norm_eps"])


def _attended(
    queries: list[torch.Tensor], keys: list[list[torch.Tensor]], values: list[list[torch.Tensor]]
) -> torch.Tensor:
    """Attention of one token to all ``keys`` and ``values``, each by position and head."""
    shared = len(queries) // len(keys[0])
    results = []
    for head, query in enumerate(queries):
        scores = torch.stack([query @ key[head // shared] for key in keys]) / math.sqrt(len(query))
        weighted = zip(scores.softmax(0), values, strict=True)
        results.append(torch.stack([weight * value[head // shared] for weight, value in weighted]).sum(0))
    return torch.cat(results)
