"""Answers in OpenAI's shapes, whole or as chunks of a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from deployments.messages import Account, Delta
from entmtp.decoding.logprobs import TokenLogprobs


@dataclass
class Answer:
    """One choice, as far as it has come."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    account: Account | None = None

    def take(self, delta: Delta) -> None:
        """One more part."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.finish_reason, self.account = delta.finish_reason, delta.account


class Shape(ABC):
    """How one endpoint tells its answers."""

    def __init__(self, id: str, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._base: dict[str, Any] = {"id": id, "model": model, "created": int(time.time())}

    @abstractmethod
    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> BaseModel:
        """All answers at once."""

    @abstractmethod
    def opening(self, index: int) -> BaseModel | None:
        """What a choice's stream begins with, before its first token."""

    @abstractmethod
    def chunk(self, index: int, delta: Delta, offset: int) -> BaseModel:
        """A part of a choice behind ``offset`` characters."""

    @abstractmethod
    def closing(self, usage: CompletionUsage) -> BaseModel:
        """The chunk without choices that tells the usage."""

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


class ChatShape(Shape):
    """/v1/chat/completions."""

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> ChatCompletion:
        choices = [
            {
                "index": index,
                "finish_reason": answer.finish_reason,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": self._logprobs(answer.tokens, answer.logprobs),
            }
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion.model_validate(
            {**self._base, "object": "chat.completion", "choices": choices, "usage": usage}
        )

    def opening(self, index: int) -> ChatCompletionChunk:
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def chunk(self, index: int, delta: Delta, offset: int) -> ChatCompletionChunk:
        choice = {
            "index": index,
            "delta": {"content": delta.text},
            "finish_reason": delta.finish_reason,
            "logprobs": self._logprobs(delta.tokens, delta.logprobs),
        }
        return self._chunk([choice])

    def closing(self, usage: CompletionUsage) -> ChatCompletionChunk:
        return self._chunk([], usage)

    def _chunk(self, choices: list[dict[str, Any]], usage: CompletionUsage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk.model_validate(
            {**self._base, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
        )

    def _logprobs(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not logprobs:
            return None
        content = [
            ChatCompletionTokenLogprob(
                **self._told(token, one.chosen), top_logprobs=[TopLogprob(**self._told(*pair)) for pair in one.top]
            )
            for token, one in zip(tokens, logprobs, strict=True)
        ]
        return {"content": content}

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        # A token may be a part of a character, which no text says.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


class CompletionShape(Shape):
    """/v1/completions: a stream has the shape of the whole."""

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> Completion:
        choices = [
            self._choice(index, answer.text, answer.finish_reason, answer.tokens, answer.logprobs, 0)
            for index, answer in enumerate(answers)
        ]
        return self._completion(choices, usage)

    def opening(self, index: int) -> None:
        return None

    def chunk(self, index: int, delta: Delta, offset: int) -> Completion:
        return self._completion(
            [self._choice(index, delta.text, delta.finish_reason, delta.tokens, delta.logprobs, offset)]
        )

    def closing(self, usage: CompletionUsage) -> Completion:
        return self._completion([], usage)

    def _completion(self, choices: list[dict[str, Any]], usage: CompletionUsage | None = None) -> Completion:
        # A chunk has no reason to finish yet, which the type of a whole completion can't say.
        made = {**self._base, "object": "text_completion", "choices": choices, "usage": usage}
        return Completion.construct(**made)

    def _choice(
        self,
        index: int,
        text: str,
        finish_reason: str | None,
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs],
        offset: int,
    ) -> dict[str, Any]:
        told = None
        if logprobs:
            texts = [self._text(token) for token in tokens]
            offsets = [offset + sum(map(len, texts[:at])) for at in range(len(texts))]
            told = {
                "tokens": texts,
                "token_logprobs": [one.chosen for one in logprobs],
                "top_logprobs": [{self._text(token): value for token, value in one.top} for one in logprobs],
                "text_offset": offsets,
            }
        return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": told}
