"""Tiny real models that write what they are told to: after each token of a chain comes the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from tests.helpers.tiny_models import tiny_model

_WIDTH = 64


def chained_model(vocab_size: int, *chains: Sequence[int]) -> PreTrainedModel:
    """A model of which greedy decoding follows the chains; no token may have two successors."""
    model = tiny_model("llama", vocab_size=vocab_size, hidden_size=_WIDTH, max_position_embeddings=512)
    tokens = torch.nn.functional.normalize(torch.randn(vocab_size, _WIDTH, generator=torch.Generator().manual_seed(5)))
    successors: dict[int, int] = {}
    for chain in chains:
        for token, following in pairwise(chain):
            assert successors.setdefault(token, following) == following
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.zero_()  # so that a state is its token's own
        elif name.endswith("norm.weight"):
            parameter.data.fill_(1)
    model.get_parameter("model.embed_tokens.weight").data.copy_(tokens)
    output = torch.zeros(vocab_size, _WIDTH)
    for token, following in successors.items():
        output[following] += tokens[token]
    model.get_parameter("lm_head.weight").data.copy_(output)
    return model


def save_chained(
    folder: Path,
    tokenizer: Tokenizer,
    *chains: Sequence[int],
    template: str | None = None,
    eos: str = "</s>",
    generation_eos: str = "</s>",
) -> Path:
    """Saves such a model with its tokenizer; its own end of text may differ from the generation config's."""
    model = chained_model(tokenizer.get_vocab_size(), *chains)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.token_to_id(generation_eos))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, chat_template=template
    ).save_pretrained(folder)
    return folder
