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

from deployments.protocol.messages import Account, Call, Delta
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import TokenLogprobs
from entmtp.decoding.token_texts import Position, TokenText, TokenTexts


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

    def __init__(self, id: str, model: str, detokenizer: Detokenizer, calls: Sequence[Call]) -> None:
        self._token_texts = {
            index: TokenTexts(detokenizer, call.prompt if call.continues_text else ())
            for index, call in enumerate(calls)
            if call.params.logprobs is not None
        }
        self._base: dict[str, Any] = {"id": id, "model": model, "created": int(time.time())}

    @abstractmethod
    def whole(self, answers: Sequence[Answer], usage: CompletionUsage, metrics: dict[str, Any] | None) -> BaseModel:
        """All answers at once."""

    @abstractmethod
    def opening(self, index: int) -> BaseModel | None:
        """What a choice's stream begins with, before its first token."""

    @abstractmethod
    def chunk(self, index: int, delta: Delta) -> BaseModel:
        """The next part of a choice."""

    @abstractmethod
    def closing(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> BaseModel:
        """The chunk without choices that tells the usage and vLLM's metrics."""

    def _positions(self, index: int, part: Answer | Delta) -> list[Position]:
        """The next tokens of a choice, where their log-probabilities were asked for."""
        if not part.logprobs:
            return []
        return self._token_texts[index].take(part.tokens, part.logprobs, part.finish_reason is not None)


class ChatShape(Shape):
    """/v1/chat/completions."""

    def whole(
        self, answers: Sequence[Answer], usage: CompletionUsage, metrics: dict[str, Any] | None
    ) -> ChatCompletion:
        choices = [
            {
                "index": index,
                "finish_reason": answer.finish_reason,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": _chat_logprobs(self._positions(index, answer)),
            }
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion.model_validate(
            {**self._base, "object": "chat.completion", "choices": choices, "usage": usage, "metrics": metrics}
        )

    def opening(self, index: int) -> ChatCompletionChunk:
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def chunk(self, index: int, delta: Delta) -> ChatCompletionChunk:
        choice = {
            "index": index,
            "delta": {"content": delta.text},
            "finish_reason": delta.finish_reason,
            "logprobs": _chat_logprobs(self._positions(index, delta)),
        }
        return self._chunk([choice])

    def closing(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> ChatCompletionChunk:
        return self._chunk([], usage=usage, metrics=metrics)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> ChatCompletionChunk:
        made = {**self._base, "object": "chat.completion.chunk", "choices": choices, "usage": None, **more}
        return ChatCompletionChunk.model_validate(made)


def _chat_logprobs(positions: Sequence[Position]) -> dict[str, Any] | None:
    if not positions:
        return None
    content = [
        ChatCompletionTokenLogprob(
            **_chat_token(one.chosen), top_logprobs=[TopLogprob(**_chat_token(each)) for each in one.top]
        )
        for one in positions
    ]
    return {"content": content}


def _chat_token(one: TokenText) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.bytes)}


class CompletionShape(Shape):
    """/v1/completions: a stream has the shape of the whole."""

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage, metrics: dict[str, Any] | None) -> Completion:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return self._completion(choices, usage=usage, metrics=metrics)

    def opening(self, index: int) -> None:
        return None

    def chunk(self, index: int, delta: Delta) -> Completion:
        return self._completion([self._choice(index, delta)])

    def closing(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> Completion:
        return self._completion([], usage=usage, metrics=metrics)

    def _completion(self, choices: list[dict[str, Any]], **more: Any) -> Completion:
        # A chunk has no reason to finish yet, which the type of a whole completion can't say.
        made = {**self._base, "object": "text_completion", "choices": choices, "usage": None, **more}
        return Completion.construct(**made)

    def _choice(self, index: int, part: Answer | Delta) -> dict[str, Any]:
        logprobs = _completion_logprobs(self._positions(index, part))
        return {"index": index, "text": part.text, "finish_reason": part.finish_reason, "logprobs": logprobs}


def _completion_logprobs(positions: Sequence[Position]) -> dict[str, Any] | None:
    if not positions:
        return None
    return {
        "tokens": [one.chosen.text for one in positions],
        "token_logprobs": [one.chosen.logprob for one in positions],
        "top_logprobs": [{each.text: each.logprob for each in one.top} for one in positions],
        "text_offset": [one.offset for one in positions],
    }
