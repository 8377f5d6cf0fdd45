"""Tokenization in the ingress: in threads of its own, and only of text that can fit into a model's context."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cached_property, partial
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from deployments.protocol.errors import ApiError, context_error
from deployments.protocol.schema import Message
from entmtp.decoding.detokenizer import Detokenizer

T = TypeVar("T")

_PROBES = (" ", "\n", "a", "e\u0301", "\U000f0000")
"""Texts that normalisers may drop or join, or that vocabularies may lack."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
"""Control characters. Byte vocabularies lack some of them, and tokenizers then drop them."""


class PromptEncoder:
    """Encodes prompts and chats with a model's tokenizer.

    Args:
        executor: runs the tokenizer, which is too slow for the event loop.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, executor: Executor) -> None:
        self.tokenizer = tokenizer
        self.detokenizer = Detokenizer(tokenizer.backend_tokenizer)
        self._executor = executor
        self._longest = longest_token(tokenizer)

    @cached_property
    def special_detokenizer(self) -> Detokenizer:
        """Detokenizer that writes special tokens too."""
        return Detokenizer(self.tokenizer.backend_tokenizer, skip_special=False)

    async def encode_text(self, prompt: str, context: int | None) -> list[int]:
        """Token ids of a prompt.

        Raises:
            ApiError: the prompt is longer than ``context`` tokens can be.
        """
        self._refuse_too_long(prompt, context, "prompt")
        return await self._run(lambda: _ids(self.tokenizer(prompt)["input_ids"]))

    async def encode_chat(
        self,
        messages: Sequence[Message],
        context: int | None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> list[int]:
        """Token ids of a chat in the model's chat template, which the tokenizer must have.

        The header of an answer is added, unless the answer continues the last message.

        Raises:
            ApiError: the chat is longer than ``context`` tokens can be, or the template refuses the messages.
        """
        turns: Any = [message.as_template() for message in messages]
        continues = bool(continue_final_message)
        adds_header = not continues if add_generation_prompt is None else add_generation_prompt
        template = partial(
            self.tokenizer.apply_chat_template,
            turns,
            add_generation_prompt=adds_header,
            continue_final_message=continues,
            tokenize=False,
        )
        try:
            text = await self._run(lambda: str(template()))
        except (TemplateError, ValueError) as error:  # a ValueError: the last message's text is not in the chat's
            message = f"messages: the model's chat template refuses them: {error}"
            raise ApiError(400, message, param="messages", code="invalid_value") from error
        self._refuse_too_long(text, context, "messages")
        return await self._run(lambda: _ids(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    async def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        return await self._run(lambda: str(self.tokenizer.decode(list(tokens))))

    def _refuse_too_long(self, text: str, context: int | None, field: str) -> None:
        if self._longest is None or context is None or len(text) <= context * self._longest:
            return
        tokens = -(-len(_CONTROLS.sub("", text)) // self._longest)
        if tokens > context:
            raise prompt_too_long(context, f"at least {tokens}", field)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def prompt_too_long(context: int, tokens: str, field: str) -> ApiError:
    """Error for a prompt, given in ``field``, that leaves no room for an answer."""
    return context_error(
        context, f"your {field} resulted in {tokens} tokens", f"reduce the length of the {field}", field
    )


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Maximum number of characters of one token, control characters excluded.

    None if the tokenizer may drop or join any number of characters.
    """
    longest = max(map(len, tokenizer.get_vocab()))
    for probe in _PROBES:
        text = probe * 8 * longest
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) * longest < len(text):
            return None
    return longest


def _ids(found: Any) -> list[int]:
    return [int(one) for one in found]
