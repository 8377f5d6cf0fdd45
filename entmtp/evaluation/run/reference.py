"""The reference: the model's own text for a prompt, with which every arm's text is compared.

The controls that know a text beforehand read the reference's rank trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers import Tokenizer

from entmtp.calibration.rank_trace import rank_trace
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.text import TextStream
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import LOGITS_CHUNK, Backbone
from entmtp.models.loading.load import encode_chat
from entmtp.policies.signals import entropy
from entmtp.suites.base import Message
from entmtp.trees.trace import RankTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reference:
    """The model's own text for a prompt.

    Attributes:
        tokens: new tokens, the end-of-text token included.
        margins: top-2 logit difference at each token; empty where the text is sampled, as margins then decide nothing.
        trace: rank trace of the text under the heads that the controls draft with; None where they are not loaded.
    """

    tokens: list[int]
    margins: list[float]
    trace: RankTrace | None

    def margin_at(self, position: int) -> float:
        """Top-2 margin at a position; NaN where there is none."""
        return self.margins[position] if position < len(self.margins) else float("nan")


@torch.inference_mode()
def greedy_tokens(model: PreTrainedModel, ids: list[int], max_new_tokens: int) -> list[int]:
    """The model's own greedy tokens after a prompt, by transformers' ``generate``."""
    prompt = torch.tensor([ids], device=model.device)
    # Without a mask generate() infers one, which hides every prompt token that equals the padding token.
    text = cast(Any, model).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False
    )
    tokens: list[int] = text[0, len(ids) :].tolist()
    return tokens


def complete_history(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, history: Sequence[Message], max_new_tokens: int
) -> list[Message]:
    """The messages, with the model's own greedy answer after each user message that has none."""
    messages: list[Message] = []
    for index, (role, content) in enumerate(history):
        messages.append((role, content))
        following = history[index + 1][0] if index + 1 < len(history) else "user"
        if role == following == "user":
            tokens = greedy_tokens(model, encode_chat(tokenizer, content, messages[:-1]), max_new_tokens)
            messages.append(("assistant", str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()))
    return messages


@torch.inference_mode()
def make_reference(
    backbone: Backbone, heads: DraftHeads | None, ids: list[int], tokens: list[int], drawn: bool
) -> Reference:
    """Make the reference of a text by one forward pass. ``drawn`` says that the text was sampled."""
    read = backbone.read([*ids, *tokens], () if heads is None else heads.feature_layers)
    margins: list[float] = []
    entropies = []
    for states in read.hidden[len(ids) - 1 : -1].split(LOGITS_CHUNK):
        logits = backbone.logits(states).float()
        top = logits.topk(2, dim=-1).values
        margins += [] if drawn else (top[:, 0] - top[:, 1]).tolist()
        entropies.append(entropy(logits))
    if heads is None:
        return Reference(tokens, margins, None)
    whole = torch.tensor([*ids, *tokens], device=backbone.device)
    text = heads.traced_text(read.features, whole, begin=len(ids))
    return Reference(tokens, margins, rank_trace(heads, whole[len(ids) :], text, torch.cat(entropies)))


def truncate_at_stop(tokens: Sequence[int], tokenizer: Tokenizer, stop: Sequence[str]) -> list[int]:
    """The tokens up to the one that completes a stop text, as an engine ends them; all tokens where none does."""
    text = TextStream(Detokenizer(tokenizer), stop)
    for at, token in enumerate(tokens):
        text.push(token)
        if text.stopped:
            return list(tokens[: at + 1])
    return list(tokens)


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Index of the first differing token (the shorter one's end counts), or -1."""
    for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return at
    return -1 if len(ours) == len(theirs) else min(len(ours), len(theirs))
