"""A tiny model that writes given texts: its next token depends on the last one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<end>"
_PADDING = "\u0000"
LAST_TURN = "{{ messages[-1]['content'] }}"
"""Chat template of the last message alone, which names a script."""


def save_scripted_model(folder: Path, scripts: Mapping[str, Sequence[str]], template: str = LAST_TURN) -> Path:
    """Save a model and its tokenizer. After the text of a key it writes the key's parts, each of them one token.

    The prompt must end with the key. Tokens of equal parts differ in padding, which decoding removes.
    """
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, END: 1}, unk_token="<unk>"))
    tokenizer.add_special_tokens([END])
    names: list[str] = []
    for key, parts in scripts.items():
        names.append(key)
        for part in parts:
            names.append(next(name for k in count() if (name := part + k * _PADDING) not in names))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.decoder = decoders.Sequence([decoders.Strip(_PADDING, 0, len(names)), decoders.Fuse()])
    starts = [names.index(key) for key in scripts]
    chains = [[*names[start:end], END] for start, end in pairwise([*starts, len(names)])]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    following = {ids[one]: ids[other] for chain in chains for one, other in pairwise(chain)}
    _model(len(ids), following, ids[END]).save_pretrained(folder)
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, unk_token="<unk>", chat_template=template
    )
    saved.save_pretrained(folder)
    return folder


def _model(size: int, following: Mapping[int, int], end: int) -> LlamaForCausalLM:
    """A model whose layers add nothing, so that the output layer sees the last token's embedding."""
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=-(-size // 8) * 8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "lm_head" in name or "embed" in name:
                weights.zero_()
        for token in range(size):
            model.get_parameter("model.embed_tokens.weight")[token, token] = 1.0
            model.get_parameter("lm_head.weight")[following.get(token, end), token] = 1.0
    return model
