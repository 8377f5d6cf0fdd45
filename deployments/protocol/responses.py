"""Responses in OpenAI's formats, complete or as chunks of a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from pydantic import BaseModel

from deployments.protocol.answer_format import TEXT_ALONE, AnswerFormat, joined
from deployments.protocol.pieces import Content, Piece, ToolCall
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
    def chunks(self, index: int, output: RequestOutput) -> Sequence[BaseModel]:
        """Chunks with the next tokens of a choice, at least one."""

    @abstractmethod
    def usage_chunk(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> BaseModel:
        """Chunk without choices that has the usage and vLLM's metrics."""

    def _positions(self, index: int, output: RequestOutput) -> list[Position]:
        """Texts and log-probabilities of the next tokens of a choice, if log-probabilities were requested."""
        if not output.logprobs:
            return []
        return self._token_texts[index].take(output.tokens, output.logprobs, output.finish_reason is not None)


class ChatResponseBuilder(ResponseBuilder):
    """Builder for /v1/chat/completions.

    Args:
        answer_format: how answers are taken apart into reasoning, content and tool calls.
    """

    def __init__(
        self,
        id: str,
        model: str,
        detokenizer: Detokenizer,
        requests: Sequence[Request],
        answer_format: AnswerFormat = TEXT_ALONE,
    ) -> None:
        super().__init__(id, model, detokenizer, requests)
        self._readers = [answer_format.reader(detokenizer) for _ in requests]
        self._calls = [0 for _ in requests]
        # An answer of calls alone has no content, not even an empty one.
        self._no_content = "" if answer_format.tool_format is None else None

    def full_response(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> ChatCompletion:
        choices = [
            {
                "index": index,
                "message": _message(self._readers[index].read(answer)),
                "finish_reason": self._finish_reason(index, answer),
                "logprobs": _chat_logprobs(self._positions(index, answer)),
            }
            for index, answer in enumerate(self.answers)
        ]
        return ChatCompletion.model_validate(
            {**self._base, "object": "chat.completion", "choices": choices, "usage": usage, "metrics": metrics}
        )

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        delta = {"role": "assistant", "content": self._no_content}
        return self._chunk([{"index": index, "delta": delta, "finish_reason": None}])

    def chunks(self, index: int, output: RequestOutput) -> list[ChatCompletionChunk]:
        deltas = self._deltas(index, self._readers[index].read(output)) or [{"content": self._no_content}]
        choices: list[dict[str, Any]] = [
            {"index": index, "delta": delta, "finish_reason": None, "logprobs": None} for delta in deltas
        ]
        choices[0]["logprobs"] = _chat_logprobs(self._positions(index, output))
        choices[-1]["finish_reason"] = self._finish_reason(index, output)
        return [self._chunk([choice]) for choice in choices]

    def usage_chunk(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> ChatCompletionChunk:
        return self._chunk([], usage=usage, metrics=metrics)

    def _deltas(self, index: int, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """Additions of pieces to a choice's message; of a call first the name, then the arguments."""
        deltas: list[dict[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, ToolCall):
                at = self._calls[index]
                self._calls[index] += 1
                deltas.append({"tool_calls": [{"index": at, **_chat_call(replace(piece, arguments=""))}]})
                deltas.append({"tool_calls": [{"index": at, "function": {"arguments": piece.arguments}}]})
            else:
                deltas.append({"content" if isinstance(piece, Content) else "reasoning_content": piece.text})
        return deltas

    def _finish_reason(self, index: int, output: RequestOutput) -> str | None:
        calls = output.finish_reason == "stop" and self._readers[index].called
        return "tool_calls" if calls else output.finish_reason

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> ChatCompletionChunk:
        made = {**self._base, "object": "chat.completion.chunk", "choices": choices, "usage": None, **more}
        return ChatCompletionChunk.model_validate(made)


def _message(pieces: Sequence[Piece]) -> dict[str, Any]:
    reasoning, content, calls = joined(pieces)
    message: dict[str, Any] = {"role": "assistant", "content": content or ("" if not calls else None)}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_chat_call(one) for one in calls]
    return message


def _chat_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


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

    def chunks(self, index: int, output: RequestOutput) -> list[Completion]:
        return [self._completion([self._choice(index, output)])]

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
