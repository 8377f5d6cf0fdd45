"""Tokens that end a turn of a chat, according to the tokenizer.

A model's generation config lists the tokens that end any text. In published models it often lacks the token that ends
a turn (it has ``</s>``, but the chat template has ``<|im_end|>``). A chat answer would then continue up to its token
limit. So both kinds of tokens end a chat answer. A plain completion ends with the tokens of the generation config
alone, as in transformers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from entmtp.settings import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTENT = "content"


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> list[int]:
    """Ids of the tokenizer's end of text and of the special token after an answer in its chat template.

    Only ids below ``vocab_size`` count. Without a template there are no turns and no ids.
    """
    if tokenizer.chat_template is None:
        return []
    found = {tokenizer.eos_token_id, _after_answer(tokenizer)}
    return sorted(token for token in found if isinstance(token, int) and token < vocab_size)


def with_end_of_turn(params: SamplingParams, ids: Sequence[int]) -> SamplingParams:
    """Parameters of a chat answer that also ends with any of ``ids``, unless the request ignores ends of text."""
    new = [token for token in ids if token not in params.stop_token_ids]
    if params.ignore_eos or not new:
        return params
    return params.model_copy(update={"stop_token_ids": [*params.stop_token_ids, *new]})


def end_of_turn_notice(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], eos_token_ids: frozenset[int]
) -> str | None:
    """One line for the user if some ``ids`` end a chat answer and are not among ``eos_token_ids``; else None."""
    missing = [token for token in ids if token not in eos_token_ids]
    if not missing:
        return None
    ends, others = (", ".join(_names(tokenizer, some)) for some in (missing, sorted(eos_token_ids)))
    return f"{ends} ends a chat answer too: the tokenizer's end of turn, which generation_config ({others}) lacks"


def _names(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in ids] or ["none"]


def _after_answer(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the special token that the template writes right after an answer; None if it writes none."""
    messages = [{"role": "user", "content": _CONTENT}, {"role": "assistant", "content": _CONTENT}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may put any condition on messages, and fail in any way
        return None
    rest = tokenizer(text.rpartition(_CONTENT)[2].lstrip(), add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder.get(rest[0]) if rest else None
    return int(rest[0]) if added is not None and added.special else None
