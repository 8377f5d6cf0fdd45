"""The EAGLE-3 formula (arXiv 2503.01840) in plain loops over positions, heads and keys, in float64 and without a cache.

It reads published tensors by their published names, and shares no code with the heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tests.helpers.eagle3_checkpoints import Eagle3Checkpoint
from tests.helpers.published_checkpoints import Model


class Eagle3Reference:
    """Published heads on a model's embeddings and output layer."""

    def __init__(self, checkpoint: Eagle3Checkpoint, model: Model) -> None:
        self._w = {
            name: each.double() if each.is_floating_point() else each for name, each in checkpoint.tensors.items()
        }
        self._o = checkpoint.options
        self._first = checkpoint.first
        self._embeddings = self._w.get("embed_tokens.weight", model.embeddings.double())
        self._output = self._w.get("lm_head.weight", model.output.double()[checkpoint.guessable])

    def states(self, features: torch.Tensor, tokens: Sequence[int]) -> list[torch.Tensor]:
        """``a`` of tokens 1, 2, ... of a text; ``features [n, width]`` are the model's, of its first n tokens.

        Beyond them a token's ``g`` is what its predecessor hands on.
        """
        certain = [self._projected(row.double()) for row in features]
        states: list[torch.Tensor] = []
        for count in range(len(certain), len(tokens)):
            drafted = [self._handed_on(state) for state in states[len(certain) - 1 :]]
            states = self._run([*certain, *drafted][:count], tokens[1 : count + 1])
        return states

    def logits(self, features: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """Logits over the draft vocabulary for the token after ``tokens``; arguments as :meth:`states`."""
        return self._output @ self._rms(self.states(features, tokens)[-1], "norm.weight")

    def log_probs(self, features: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of :meth:`logits`."""
        return self.logits(features, tokens).log_softmax(-1)

    def _projected(self, features: torch.Tensor) -> torch.Tensor:
        if self._o.get("norm_before_fc"):
            features = self._rms(features, "input_norm.weight")
        if self._o.get("fc_norm"):
            count = sum(name.startswith("fc_norm.") for name in self._w)
            parts = features.chunk(count)
            features = torch.cat([self._rms(part, f"fc_norm.{number}.weight") for number, part in enumerate(parts)])
        return self._w["fc.weight"] @ features

    def _handed_on(self, state: torch.Tensor) -> torch.Tensor:
        return self._rms(state, "norm.weight") if self._o.get("norm_output") else state

    def _run(self, gs: list[torch.Tensor], tokens: Sequence[int]) -> list[torch.Tensor]:
        inputs, residuals = [], []
        for g, token in zip(gs, tokens, strict=True):
            normed = self._rms(g, f"{self._first}hidden_norm.weight")
            embedded = self._rms(self._embeddings[token], f"{self._first}input_layernorm.weight")
            inputs.append(torch.cat([embedded, normed]))
            residuals.append(normed if self._o.get("norm_before_residual") else g)
        states = self._decoder_layer(self._first, inputs, residuals)
        for layer in range(1, self._o["num_hidden_layers"]):
            prefix = f"layers.{layer}."
            states = self._decoder_layer(
                prefix, [self._rms(s, f"{prefix}input_layernorm.weight") for s in states], states
            )
        return states

    def _decoder_layer(
        self, prefix: str, inputs: list[torch.Tensor], residuals: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        queries, keys, values = (
            [self._heads(prefix, name, states, at) for at, states in enumerate(inputs)] for name in ("q", "k", "v")
        )
        outputs = []
        for at, residual in enumerate(residuals):
            attended = _attended(queries[at], keys[: at + 1], values[: at + 1])
            state = residual + self._matrix(f"{prefix}self_attn.o_proj", attended)
            normed = self._rms(state, f"{prefix}post_attention_layernorm.weight")
            gate, up = (self._matrix(f"{prefix}mlp.{name}_proj", normed) for name in ("gate", "up"))
            outputs.append(state + self._matrix(f"{prefix}mlp.down_proj", gate * torch.sigmoid(gate) * up))
        return outputs

    def _heads(self, prefix: str, name: str, states: torch.Tensor, position: int) -> list[torch.Tensor]:
        """Queries, keys or values of a position, by head."""
        heads = self._matrix(f"{prefix}self_attn.{name}_proj", states).split(self._o["head_dim"])
        if name == "v":
            return list(heads)
        norm = f"{prefix}self_attn.{name}_norm.weight"
        return [self._turned(self._rms(head, norm) if norm in self._w else head, position) for head in heads]

    def _turned(self, head: torch.Tensor, position: int) -> torch.Tensor:
        half = len(head) // 2
        turned = head.clone()
        for i in range(half):
            angle = position * _frequency(self._o, i, len(head))
            first, second = head[i], head[i + half]
            turned[i] = first * math.cos(angle) - second * math.sin(angle)
            turned[i + half] = second * math.cos(angle) + first * math.sin(angle)
        return turned

    def _matrix(self, name: str, states: torch.Tensor) -> torch.Tensor:
        product = self._w[f"{name}.weight"] @ states
        return product + self._w[f"{name}.bias"] if f"{name}.bias" in self._w else product

    def _rms(self, states: torch.Tensor, name: str) -> torch.Tensor:
        return self._w[name] * states / torch.sqrt((states * states).mean() + self._o["rms_norm_eps"])


def _attended(
    queries: list[torch.Tensor], keys: list[list[torch.Tensor]], values: list[list[torch.Tensor]]
) -> torch.Tensor:
    """Attention of one position; ``keys`` and ``values`` are those of all positions up to it, by head."""
    shared = len(queries) // len(keys[0])
    results = []
    for head, query in enumerate(queries):
        scores = torch.stack([query @ key[head // shared] for key in keys]) / math.sqrt(len(query))
        weighted = zip(scores.softmax(0), values, strict=True)
        results.append(torch.stack([weight * value[head // shared] for weight, value in weighted]).sum(0))
    return torch.cat(results)


def _frequency(options: dict[str, Any], i: int, head_dim: int) -> float:
    """Angle per position of pair i. Llama 3's scaling is that of its authors' ``apply_scaling``."""
    scaling = options.get("rope_parameters") or options.get("rope_scaling") or {}
    theta = scaling.get("rope_theta", options.get("rope_theta", 10_000.0))
    frequency = theta ** (-2 * i / head_dim)
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return frequency / scaling["factor"]
    if kind != "llama3":
        return frequency
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    if turns < low:
        return frequency / scaling["factor"]
    if turns > high:
        return frequency
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
