"""Tokenization in the ingress: in threads of its own, and only of text that can fit into a model's context."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from deployments.protocol.errors import ApiError, context_error
from entmtp.decoding.detokenizer import Detokenizer

T = TypeVar("T")

_PROBES = (" ", "\n", "a", "e\u0301", "\U000f0000")
"""Texts that normalisers may drop or join, or that vocabularies may lack."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
"""Control characters. Byte vocabularies lack some of them, and tokenizers then drop them."""


class EncodedChat(NamedTuple):
    """A chat in a chat template, as text and as token ids."""

    text: str
    tokens: list[int]


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

    async def encode_chat(self, render: Callable[[], str], context: int | None, field: str) -> EncodedChat:
        """Token ids of the chat that ``render`` writes in the model's chat template.

        Args:
            field: name of the request's field with the chat.

        The header of an answer is added, unless the answer continues the last message.

        Raises:
            ApiError: the chat is longer than ``context`` tokens can be, or the template refuses it.
        """
        text = await self._run(render)
        self._refuse_too_long(text, context, field)
        tokens = await self._run(lambda: _ids(self.tokenizer(text, add_special_tokens=False)["input_ids"]))
        return EncodedChat(text, tokens)

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
