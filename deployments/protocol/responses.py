"""Responses in OpenAI's formats, complete or as chunks of a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from pydantic import BaseModel

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request
from entmtp.decoding.token_texts import Position, TokenText, TokenTexts


class ResponseBuilder(ABC):
    """Builder of one body's response for an endpoint.

    Attributes:
        requests: the body's requests to the engine, one for each choice.
        answers: outputs of each so far, added up.
    """

    def __init__(self, id: str, model: str, detokenizer: Detokenizer, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.answers = [RequestOutput(one.id) for one in requests]
        self._token_texts = {
            index: TokenTexts(detokenizer, one.prompt if one.continues_text else ())
            for index, one in enumerate(requests)
            if one.params.logprobs is not None
        }
        self._base: dict[str, Any] = {"id": id, "model": model, "created": int(time.time())}

    @abstractmethod
    def full_response(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> BaseModel:
        """Complete response with all answers."""

    @abstractmethod
    def first_chunk(self, index: int) -> BaseModel | None:
        """Chunk that begins a choice's stream before its first token, if the endpoint has one."""

    @abstractmethod
    def chunk(self, index: int, output: RequestOutput) -> BaseModel:
        """Chunk with the next tokens of a choice."""

    @abstractmethod
    def usage_chunk(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> BaseModel:
        """Chunk without choices that has the usage and vLLM's metrics."""

    def _positions(self, index: int, output: RequestOutput) -> list[Position]:
        """Texts and log-probabilities of the next tokens of a choice, if log-probabilities were requested."""
        if not output.logprobs:
            return []
        return self._token_texts[index].take(output.tokens, output.logprobs, output.finish_reason is not None)


class ChatResponseBuilder(ResponseBuilder):
    """Builder for /v1/chat/completions."""

    def full_response(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> ChatCompletion:
        choices = [
            {
                "index": index,
                "finish_reason": answer.finish_reason,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": _chat_logprobs(self._positions(index, answer)),
            }
            for index, answer in enumerate(self.answers)
        ]
        return ChatCompletion.model_validate(
            {**self._base, "object": "chat.completion", "choices": choices, "usage": usage, "metrics": metrics}
        )

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def chunk(self, index: int, output: RequestOutput) -> ChatCompletionChunk:
        choice = {
            "index": index,
            "delta": {"content": output.text},
            "finish_reason": output.finish_reason,
            "logprobs": _chat_logprobs(self._positions(index, output)),
        }
        return self._chunk([choice])

    def usage_chunk(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> ChatCompletionChunk:
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


class CompletionResponseBuilder(ResponseBuilder):
    """Builder for /v1/completions, whose chunks have the format of the complete response."""

    def full_response(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> Completion:
        choices = [self._choice(index, answer) for index, answer in enumerate(self.answers)]
        return self._completion(choices, usage=usage, metrics=metrics)

    def first_chunk(self, index: int) -> None:
        return None

    def chunk(self, index: int, output: RequestOutput) -> Completion:
        return self._completion([self._choice(index, output)])

    def usage_chunk(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> Completion:
        return self._completion([], usage=usage, metrics=metrics)

    def _completion(self, choices: list[dict[str, Any]], **more: Any) -> Completion:
        # The type of a complete response requires a finish_reason, which a chunk does not have yet.
        made = {**self._base, "object": "text_completion", "choices": choices, "usage": None, **more}
        return Completion.construct(**made)

    def _choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        logprobs = _completion_logprobs(self._positions(index, output))
        return {"index": index, "text": output.text, "finish_reason": output.finish_reason, "logprobs": logprobs}


def _completion_logprobs(positions: Sequence[Position]) -> dict[str, Any] | None:
    if not positions:
        return None
    return {
        "tokens": [one.chosen.text for one in positions],
        "token_logprobs": [one.chosen.logprob for one in positions],
        "top_logprobs": [{each.text: each.logprob for each in one.top} for one in positions],
        "text_offset": [one.offset for one in positions],
    }
