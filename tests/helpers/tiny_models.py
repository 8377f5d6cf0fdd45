"""Tiny random models of many architectures, so that a test runs in milliseconds and still meets real modelling code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from entmtp.heads.checkpoint import KINDS
from entmtp.heads.trained import TrainedHeads
from entmtp.models.backbone import Backbone
from entmtp.models.cache import TreeCache
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Path, Topology

VOCAB = 96
CONTEXT = 128
WINDOW = 6
HEADS, DRAFT_VOCAB = 4, 40
STATELESS_KINDS = tuple(kind for kind, heads in KINDS.items() if issubclass(heads, TrainedHeads))
"""Trained kinds of heads that guess from one decoder state."""
PATTERN = ["sliding_attention", "full_attention"]
MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    # Wide enough that attention and output are far from uniform, so that a wrong mask shows.
    "initializer_range": 0.3,
}
_WINDOWED = {"sliding_window": WINDOW, "layer_types": PATTERN}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False, "bos_token_id": 1},
    "qwen3": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": _WINDOWED | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma2": _WINDOWED | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 5.0},
    "gpt2": {"n_inner": 64},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "embedding_multiplier": 3.0},
    "phi": {"partial_rotary_factor": 0.5},
    "mixtral": MOE,
    "gpt_oss": _WINDOWED | MOE | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}
SUPPORTED = tuple(_OWN)


def tiny_model(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random model; the same arguments give the same weights."""
    config = AutoConfig.for_model(model_type, **(_COMMON | _OWN.get(model_type, {}) | changes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _disturb(model)
    torch.nn.Module.to(model, dtype)
    return model


def _disturb(model: PreTrainedModel) -> None:
    """Biases, norm weights and attention sinks start at a constant, which would hide a term that is left out."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)


def random_heads(kind: str, backbone: Backbone, **changes: int | str) -> TrainedHeads:
    """Unattached heads that guess within a scattered part of the vocabulary."""
    shape: dict[str, Any] = {
        "hidden_size": backbone.hidden_size,
        "vocab_size": VOCAB,
        "num_heads": HEADS,
        "inner_size": 24,
        "draft_vocab_size": DRAFT_VOCAB,
        "model_fingerprint": backbone.fingerprint,
    }
    heads_class = KINDS[kind]
    assert issubclass(heads_class, TrainedHeads)
    heads = heads_class(heads_class.config_class(**(shape | changes)))
    generator = torch.Generator().manual_seed(3)
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    heads.draft_vocab.copy_(torch.randperm(VOCAB, generator=generator)[: heads.config.draft_vocab_size])
    return heads


def random_tokens(count: int, seed: int = 0, vocab: int = VOCAB) -> list[int]:
    """Token ids without meaning."""
    return torch.randint(2, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Logits ``[len(ids), vocab]`` of the model run alone, without a cache."""
    prompt = torch.tensor([list(ids)], device=model.device)
    return torch.nn.Module.__call__(model, input_ids=prompt, use_cache=False).logits[0]


_WRITTEN: WeakKeyDictionary[PreTrainedModel, dict[tuple[int, ...], list[int]]] = WeakKeyDictionary()
"""Longest greedy continuation of each prompt so far, by model."""


def greedy(model: PreTrainedModel, ids: Sequence[int], new_tokens: int, **options: Any) -> list[int]:
    """The model's own greedy continuation, with ``options`` of ``generate``.

    Without options a text is written once, as a shorter continuation is the beginning of a longer one, and by the
    model's bare passes: ``generate`` takes twice as long.
    """
    if options or model.generation_config is None or model.generation_config.eos_token_id is not None:
        return _generate(model, ids, new_tokens, **options)
    written = _WRITTEN.setdefault(model, {})
    if len(written.get(tuple(ids), ())) < new_tokens:
        written[tuple(ids)] = _likeliest(model, ids, new_tokens)
    return written[tuple(ids)][:new_tokens]


@torch.inference_mode()
def _likeliest(model: PreTrainedModel, ids: Sequence[int], new_tokens: int) -> list[int]:
    passed = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=True)
    tokens = [int(passed.logits[0, -1].argmax())]
    while len(tokens) < new_tokens:
        last = torch.tensor([tokens[-1:]], device=model.device)
        passed = model(input_ids=last, past_key_values=passed.past_key_values, use_cache=True)
        tokens.append(int(passed.logits[0, -1].argmax()))
    return tokens


@torch.inference_mode()
def _generate(model: PreTrainedModel, ids: Sequence[int], new_tokens: int, **options: Any) -> list[int]:
    prompt = torch.tensor([list(ids)], device=model.device)
    generate: Any = model.generate
    output = generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False, **options
    )
    return output[0, len(ids) :].tolist()


def commit(cache: TreeCache, accepted: Sequence[Sequence[int]]) -> None:
    """Commit the ``accepted`` nodes of each batch row of the current slot mapping, on device and host."""
    slots = cache.slot_mapping.kv_range.slots
    counts = [len(nodes) for nodes in accepted]
    padded = [[*nodes, *range(len(nodes), max(counts))] for nodes in accepted]
    cache.commit(slots, torch.tensor(padded, dtype=torch.int64).reshape(len(slots), -1), torch.tensor(counts))
    cache.sync_lengths(slots, counts)


def verify(
    backbone: Backbone, tokens: torch.Tensor, trees: TreeBatch, slots: Sequence[int], cache: TreeCache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and states of the trees' nodes, with the smallest KV range."""
    kv_range = cache.kv_range(slots, trees.width, padded=trees.shape.padded)
    logits, states = backbone.verify(tokens, trees, kv_range, cache)
    return logits, states.hidden


def buffers(cache: TreeCache) -> list[torch.Tensor]:
    """Keys and values of every layer, in turn."""
    both = [buffer for layer in cache.tree_layers for buffer in (layer.keys, layer.values)]
    return [buffer for buffer in both if buffer is not None]


def nodes_on(topology: Topology, node: int) -> list[int]:
    """The nodes from the root to ``node``, both included."""
    return topology.ancestors[node].nonzero()[:, 0].tolist()


# Deeper than the window, with its rows far from position order.
_SPINE = [(0,) * depth for depth in range(1, WINDOW + 3)]
TREES: dict[str, Topology] = {
    "deep": Topology.of(_SPINE + [(*path[:-1], rank) for path in _SPINE for rank in (1, 2)]),
    "root": Topology.root_only(),
    "chain": Topology.of([(0,), (0, 0), (0, 0, 0)]),
    "wide": Topology.of([(0,), (1,), (2,), (5,)]),
    "bushy": Topology.of([(0,), (1,), (3,), (0, 0), (0, 2), (1, 0), (0, 2, 0), (0, 2, 1), (1, 0, 0)]),
}


@st.composite
def path_sets(draw: Callable[[st.SearchStrategy[Any]], Any], max_depth: int = 4, max_rank: int = 5) -> list[Path]:
    """Non-empty prefix-closed sets of paths in any order."""
    leaves = draw(st.lists(st.lists(st.integers(0, max_rank), min_size=1, max_size=max_depth), min_size=1, max_size=6))
    closed = {tuple(leaf[:depth]) for leaf in leaves for depth in range(1, len(leaf) + 1)}
    return draw(st.permutations(sorted(closed)))


def topologies(max_depth: int = 4, max_rank: int = 5) -> st.SearchStrategy[Topology]:
    """Topologies, now and then the empty one."""
    return st.one_of(st.just(Topology.root_only()), path_sets(max_depth, max_rank).map(Topology.of))
