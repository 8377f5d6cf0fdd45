"""The tokens that end a turn of a chat, as the tokenizer knows them.

A model's generation config names the tokens that end any text. In published models it often lacks the one that ends a
turn (``</s>`` there, ``<|im_end|>`` in the chat template), and a chat answer would run on to its last token. So a chat
answer ends with either; a plain completion with those of the generation config alone, as in transformers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from entmtp.settings import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTENT = "content"


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> list[int]:
    """Ids below ``vocab_size``: the tokenizer's own end of text, and the special token after an answer in its template.

    Without a template there are no turns, and no ids.
    """
    if tokenizer.chat_template is None:
        return []
    found = {tokenizer.eos_token_id, _after_answer(tokenizer)}
    return sorted(token for token in found if isinstance(token, int) and token < vocab_size)


def ending_turns(params: SamplingParams, ids: Sequence[int]) -> SamplingParams:
    """The parameters of a chat answer, which any of ``ids`` ends too, unless the request ignores ends of text."""
    new = [token for token in ids if token not in params.stop_token_ids]
    if params.ignore_eos or not new:
        return params
    return params.model_copy(update={"stop_token_ids": [*params.stop_token_ids, *new]})


def turn_notice(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], eos_token_ids: frozenset[int]) -> str | None:
    """One line for the user where ``ids`` end a chat answer that the model's ``eos_token_ids`` would not."""
    missing = [token for token in ids if token not in eos_token_ids]
    if not missing:
        return None
    ends, others = (", ".join(_names(tokenizer, some)) for some in (missing, sorted(eos_token_ids)))
    return f"{ends} ends a chat answer too: the tokenizer's end of turn, which generation_config ({others}) lacks"


def _names(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in ids] or ["none"]


def _after_answer(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The special token right after an answer's text, where the template writes one."""
    messages = [{"role": "user", "content": _CONTENT}, {"role": "assistant", "content": _CONTENT}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may demand anything of messages, and fail in any way
        return None
    rest = tokenizer(text.rpartition(_CONTENT)[2].lstrip(), add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder.get(rest[0]) if rest else None
    return int(rest[0]) if added is not None and added.special else None
