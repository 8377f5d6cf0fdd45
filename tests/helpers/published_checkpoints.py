"""Tiny draft-head checkpoints in the published layouts, and the published formulas in plain torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import embedding, linear, silu

Numbers = Callable[..., torch.Tensor]
CONFIG = "config.json"


@dataclass(frozen=True)
class Model:
    """Parts of the model that heads use: its output layer and input embeddings, each ``[vocab, hidden]``."""

    output: torch.Tensor
    embeddings: torch.Tensor

    @property
    def vocab(self) -> int:
        return self.output.shape[0]

    @property
    def hidden(self) -> int:
        return self.output.shape[1]


@dataclass(frozen=True)
class Published:
    """A checkpoint that is not saved yet.

    Attributes:
        kind: the family that it is imported as.
        heads: number of heads among the tensors of ``file``; ``config`` may differ.
        logits: the published formula: head, decoder states ``[n, hidden]`` and paths ``[n, head + 1]`` (roots first) to
            logits over the vocabulary, or over the tokens ``guessable`` if the heads know fewer.
    """

    file: str
    kind: str
    heads: int
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    logits: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
    guessable: torch.Tensor | None = None

    def save(self, folder: Path) -> Path:
        """Writes both files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config))
        save_tensors(folder / self.file, self.tensors)
        return folder


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Saves a state dict with ``save_file`` or ``torch.save``."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(dict(tensors), path)


def _random(seed: int) -> Numbers:
    """Makes a generator of random tensors, scaled down by the square root of their last dimension."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    return numbers


def _blocks(states: torch.Tensor, tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    for name in names:
        states = states + silu(linear(states, tensors[f"{name}.weight"], tensors.get(f"{name}.bias")))
    return states


def medusa(
    model: Model,
    heads: int = 3,
    layers: int = 1,
    own: bool = True,
    file: str = "medusa_lm_head.pt",
    prefix: str = "",
    seed: int = 0,
    **config: Any,
) -> Published:
    """The authors' layout; without ``own`` output layers their legacy one; TGI's in a ``.safetensors`` file."""
    numbers, hidden = _random(seed), model.hidden
    tensors = {}
    for i in range(heads):
        for j in range(layers):
            tensors[f"{i}.{j}.linear.weight"] = numbers(hidden, hidden)
            tensors[f"{i}.{j}.linear.bias"] = numbers(hidden)
        if own:
            tensors[f"{i}.{layers}.weight"] = model.output + numbers(model.vocab, hidden)

    def logits(head: int, states: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        states = _blocks(states, tensors, [f"{head}.{j}.linear" for j in range(layers)])
        return linear(states, tensors[f"{head}.{layers}.weight"] if own else model.output)

    fields = {"medusa_num_heads": heads, "medusa_num_layers": layers, "base_model_name_or_path": "org/base"} | config
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    return Published(file, "medusa", heads, _without_none(fields), named, logits)


def vllm(
    model: Model,
    heads: int = 3,
    layers: int = 1,
    bias: bool = False,
    truncated: int | None = None,
    cut: bool = True,
    original: str | None = None,
    scale: float = 1.0,
    prefix: str = "",
    seed: int = 0,
    **config: Any,
) -> Published:
    """vLLM's layout.

    ``truncated`` is the size of the token map; ``cut`` restricts the output layers to it. ``original`` is the name of
    one output layer for all heads, or "" for the model's own.
    """
    numbers, hidden, vocab = _random(seed), model.hidden, model.vocab
    tensors = {}
    for i in range(heads):
        for j in range(layers):
            tensors[f"blocks.{i}.layers.{j}.weight"] = numbers(hidden, hidden)
            if bias:
                tensors[f"blocks.{i}.layers.{j}.bias"] = numbers(hidden)
    outputs = [f"lm_heads.{i}.weight" for i in range(heads)] if original is None else [original] * heads
    tensors |= {name: model.output + numbers(vocab, hidden) for name in dict.fromkeys(outputs) if name}
    fields = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": hidden,
        "vocab_size": vocab,
        "num_heads": heads,
        "num_hidden_layers": layers,
        "truncated_vocab_size": truncated or vocab,
        "original_lm_head": original is not None,
        "medusa_fc_bias": bias,
        "logit_scale": scale,
        "max_paths": 64,
        "topk": 10,
    }
    token_map = None
    if truncated is not None:
        generator = torch.Generator().manual_seed(seed)
        token_map = tensors["token_map"] = torch.randperm(vocab, generator=generator)[:truncated]
        if cut:
            tensors |= {name: tensors[name][token_map] for name in outputs}

    def logits(head: int, states: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        rows = tensors[outputs[head]] if outputs[head] else model.output
        if token_map is not None and len(rows) > len(token_map):
            rows = rows[token_map]
        return scale * linear(_blocks(states, tensors, [f"blocks.{head}.layers.{j}" for j in range(layers)]), rows)

    named = {prefix + name: tensor for name, tensor in tensors.items()}
    return Published("model.safetensors", "medusa", heads, _without_none(fields | config), named, logits, token_map)


def hydra(
    model: Model,
    heads: int = 4,
    layers: int = 1,
    grounded: bool = True,
    dropout: bool = False,
    embeddings: bool = True,
    seed: int = 0,
    **config: Any,
) -> Published:
    """The authors' layout of stateless heads; ``embeddings`` adds the model's to the tensors, as theirs has them."""
    numbers, hidden, vocab = _random(seed), model.hidden, model.vocab
    block_numbers = [2 * layer + 1 if dropout else layer for layer in range(layers)]
    output = "hydra_lm_head.{}.1" if dropout else "hydra_lm_head.{}"
    tensors = {"input_embed_fn.weight": model.embeddings.clone()} if embeddings else {}
    for i in range(heads):
        tensors[f"{output.format(i)}.weight"] = model.output + numbers(vocab, hidden)
        tensors[f"{output.format(i)}.bias"] = numbers(vocab)
        square = numbers(hidden, hidden), numbers(hidden)  # one module, repeated
        for layer, number in enumerate(block_numbers):
            weight, bias = square
            if grounded and layer == 0:
                weight, bias = numbers(hidden, (i + 2) * hidden), numbers(hidden)
                skip = numbers(hidden, (i + 2) * hidden)
                tensors[f"hydra_mlp.{i}.{number}.res_connection.weight"] = skip
                tensors[f"hydra_mlp.{i}.{number}.res_connection.bias"] = numbers(hidden)
            tensors[f"hydra_mlp.{i}.{number}.linear.weight"] = weight
            tensors[f"hydra_mlp.{i}.{number}.linear.bias"] = bias

    def logits(head: int, states: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        names = [f"hydra_mlp.{head}.{number}" for number in block_numbers]
        if grounded:
            first = names.pop(0)
            inputs = torch.cat([states, embedding(paths, model.embeddings).flatten(-2)], dim=-1)
            skip, inner = (
                linear(inputs, tensors[f"{first}.{part}.weight"], tensors[f"{first}.{part}.bias"])
                for part in ("res_connection", "linear")
            )
            states = skip + silu(inner)
        states = _blocks(states, tensors, [f"{name}.linear" for name in names])
        return linear(states, *(tensors[f"{output.format(head)}.{part}"] for part in ("weight", "bias")))

    fields = {
        "hydra_num_heads": heads,
        "hydra_num_layers": layers,
        "hydra_head_arch": "mlp",
        "grounded_heads": grounded,
        "hidden_state_offset": 0,
        "dropout_rate": 0.2 if dropout else None,
        "base_model_name_or_path": "org/base",
    }
    kind = "hydra" if grounded else "medusa"
    return Published("hydra_lm_head.pt", kind, heads, _without_none(fields | config), tensors, logits)


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


LAYOUTS: dict[str, Callable[[Model], Published]] = {
    # The first published configurations name two of five heads and no layers.
    "medusa, oldest": lambda model: medusa(model, 5, medusa_num_heads=2, medusa_num_layers=None),
    "medusa, two layers": lambda model: medusa(model, layers=2, prefix="medusa_head."),
    "medusa, legacy": lambda model: medusa(model, own=False, version="2", vocab_size=model.vocab),
    "TGI, own outputs": lambda model: medusa(model, file="medusa_lm_head.safetensors"),
    "TGI, model's output": lambda model: medusa(
        model, own=False, file="medusa_lm_head.safetensors", vocab_size=model.vocab
    ),
    "vLLM": vllm,
    "vLLM, biased": lambda model: vllm(model, layers=2, bias=True, prefix="medusa_heads.", scale=0.5),
    "vLLM, token map": lambda model: vllm(model, truncated=model.vocab - 3),
    "vLLM, token map on all rows": lambda model: vllm(model, truncated=model.vocab - 3, cut=False),
    "vLLM, one output": lambda model: vllm(model, original="lm_head.weight"),
    "vLLM, first output for all": lambda model: vllm(
        model, original="lm_heads.0.weight", truncated=model.vocab - 3, cut=False
    ),
    "vLLM, model's output": lambda model: vllm(model, original="", layers=2),
    "hydra": hydra,
    "hydra, four layers": lambda model: hydra(model, layers=4),
    "hydra, dropout": lambda model: hydra(model, layers=2, dropout=True, embeddings=False),
    "hydra, not grounded": lambda model: hydra(model, layers=2, grounded=False),
}
"""Every layout that is imported, by name."""
