"""Fields of OpenAI's and vLLM's requests that this service does not support.

Clients send many of them with values that request nothing: null, empty lists, their defaults. Such values are accepted.
Any other value is refused with an error that names its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic_core import PydanticCustomError

from entmtp.errors import quoted

UNSUPPORTED: Final = "unsupported_parameter"
"""Type of the validation error; its context has the ``field``, the quoted ``value`` and the ``fix``."""

IGNORED = frozenset(
    {
        *("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
        *("service_tier", "store"),
    }
)
"""OpenAI's fields whose values never change the text."""

_REASONS = {
    "suffix": "text is written after a prompt, and not into a gap",
    "use_beam_search": "it draws tokens, and has no beams; n and best_of give several answers",
    "length_penalty": "it is for beam search, which is not offered",
    "audio": "its models write text alone, and no audio",
    "modalities": "its models write text alone",
    "web_search_options": "it reads nothing but the request",
    "documents": "it searches no documents; put their text into a message",
    "prompt_embeds": "it reads text and token ids, and no embeddings",
}
"""Reasons why the service has no such field, where a client may wonder."""

NoEffect = Mapping[str, tuple[object, ...]]
"""Values that request nothing, by field; null is always one of them."""

_BOTH: dict[str, tuple[object, ...]] = {
    # OpenAI's
    "suffix": ("",),
    # vLLM's
    "allowed_token_ids": (),
    "cache_salt": (),
    "ec_transfer_params": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0,),
    "logits_processors": ([],),
    "repetition_detection": (),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True, False),  # as in vLLM, the fast tokenizers' decoders decide
    "structural_tag": (),
    "thinking_token_budget": (-1,),
    "truncation_side": ("left",),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}

_CHAT: dict[str, tuple[object, ...]] = {
    # OpenAI's
    "functions": ([],),
    "function_call": ("none", "auto", {}),
    "audio": ({},),
    "best_of": (1,),
    "echo": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "web_search_options": (),
    # vLLM's
    "add_special_tokens": (False,),
    "chat_template": (),
    "documents": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "return_assistant_tokens_mask": (False,),
    "return_prompt_text": (False,),
}


class ForeignFields(NamedTuple):
    """Fields that a body may have in addition to its own."""

    no_effect: NoEffect
    ignored: frozenset[str] = frozenset()

    def strip_from(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body without these fields.

        Raises:
            PydanticCustomError: a value requests what this service doesn't have.
        """
        for field, values in self.no_effect.items():
            if field in body and not _requests_nothing(body[field], values):
                raise _unsupported(field, body[field], values)
        return {
            field: value for field, value in body.items() if field not in self.no_effect and field not in self.ignored
        }


NOTHING = ForeignFields({})
CHAT = ForeignFields(_CHAT | _BOTH, IGNORED)
COMPLETION = ForeignFields(
    _BOTH | {"add_special_tokens": (True,), "prompt_embeds": ()}, IGNORED | {"parallel_tool_calls"}
)
TOKENIZE = ForeignFields(
    {
        "add_special_tokens": (True,),
        "chat_template": (),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "return_token_strs": (False,),
    }
)
TOKENIZE_CHAT = ForeignFields({**TOKENIZE.no_effect, "add_special_tokens": (False,)})
"""Fields of a chat to tokenize, whose special tokens come from the chat template."""

MESSAGE = ForeignFields(
    {
        "function_call": ({},),
        "audio": ({},),
        "annotations": ([],),
        "refusal": ("",),
    }
)
"""Fields of an answer's message, which clients send back with the next turn of the chat."""

STRUCTURED_OUTPUTS = ForeignFields(
    {
        "disable_additional_properties": (False,),
        "disable_any_whitespace": (True, False),  # the layout is fixed
        "disable_fallback": (True, False),  # there is nothing to fall back to
        "structural_tag": (),
        "whitespace_pattern": (),
    }
)
"""Fields of vLLM's ``structured_outputs``."""

PART = ForeignFields({}, frozenset({"prompt_cache_breakpoint"}))


def _requests_nothing(given: Any, values: tuple[object, ...]) -> bool:
    # The types are compared too, as False == 0 and True == 1 in Python.
    return given is None or any(
        given == value and isinstance(given, bool) == isinstance(value, bool) for value in values
    )


def _unsupported(field: str, value: Any, values: tuple[object, ...]) -> PydanticCustomError:
    accepted = f", or send {' or '.join(quoted(one) for one in values)}" if values else ""
    reason = f": {_REASONS[field]}" if field in _REASONS else ""
    context = {"field": field, "value": quoted(value), "reason": reason, "fix": f"leave it out{accepted}"}
    return PydanticCustomError(UNSUPPORTED, "this service doesn't have it{reason}; {fix}", context)
