"""Tokenizing in the ingress: bounded by what can fit, and in threads of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deployments.engines.chat_template import ChatTemplate
from deployments.engines.tokenizing import EncodedChat, PromptEncoder, longest_token
from deployments.protocol.chat_turns import Chat
from deployments.protocol.errors import ApiError
from deployments.protocol.schema import Message
from deployments.settings import EngineArgs
from entmtp.models.loading.load import load_tokenizer
from tests.helpers.examples import examples


@pytest.fixture(scope="module")
def bundled() -> PreTrainedTokenizerBase:
    """The bundled model's."""
    return load_tokenizer("bundled")


@pytest.fixture(scope="module")
def longest(bundled: PreTrainedTokenizerBase) -> int | None:
    return longest_token(bundled)


@pytest.fixture(scope="module")
def encoder(bundled: PreTrainedTokenizerBase) -> Iterator[PromptEncoder]:
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as threads:
        yield PromptEncoder(bundled, threads)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@settings(max_examples=examples(per_hundred=200))
@given(text=st.text(max_size=200), times=st.integers(1, 20))
def test_no_text_has_fewer_tokens_than_its_length_says(
    bundled: PreTrainedTokenizerBase, longest: int | None, text: str, times: int
) -> None:
    assert longest is not None
    counted = sum(category(letter) != "Cc" for letter in text)
    assert len(ids(bundled, text * times)) * longest >= counted * times


def test_a_tokenizer_that_drops_or_joins_text_has_no_bound() -> None:
    words = models.WordLevel({"a": 0, "?": 1}, unk_token="?")
    plain, stripping = Tokenizer(words), Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2}, []))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    stripping.normalizer = normalizers.Strip()
    for tokenizer in (plain, stripping):
        assert longest_token(PreTrainedTokenizerFast(tokenizer_object=tokenizer)) is None


def test_text_is_refused_where_no_tokens_of_the_context_can_hold_it(
    encoder: PromptEncoder, bundled: PreTrainedTokenizerBase
) -> None:
    longest = longest_token(bundled) or 0
    fits = "x" * 4 * longest
    assert asyncio.run(encoder.encode_text(fits, 4)) == ids(bundled, fits)
    with pytest.raises(ApiError) as refusal:
        asyncio.run(encoder.encode_text(fits + "x", 4))
    assert (refusal.value.param, refusal.value.code) == ("prompt", "context_length_exceeded")
    assert "maximum context length is 4 tokens" in refusal.value.message
    assert "at least 5 tokens" in refusal.value.message
    dropped = "\x16" * 5 * longest
    assert asyncio.run(encoder.encode_text(dropped, 4)) == ids(bundled, dropped)


def test_a_chat_is_what_the_template_writes(encoder: PromptEncoder, bundled: PreTrainedTokenizerBase) -> None:
    messages = [Message(role="user", content="Hello"), Message(role="assistant", content=None)]
    turns: Any = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}]
    expected = bundled.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    template = ChatTemplate(bundled, EngineArgs.parse(name="e", model_name="m"))

    def encoded(messages: list[Message]) -> EncodedChat:
        return asyncio.run(encoder.encode_chat(lambda: template.render(Chat(messages)), 256, "messages"))

    assert encoded(messages).tokens == list(expected)
    with pytest.raises(ApiError) as refusal:
        encoded([Message(role="user", content="x" * 100_000)])
    assert refusal.value.param == "messages"


def test_tokenizing_has_threads_of_its_own(encoder: PromptEncoder) -> None:
    async def thread() -> str:
        return await encoder._run(lambda: threading.current_thread().name)

    assert asyncio.run(thread()).startswith("tokenizer")
