"""Responses in OpenAI's formats, complete or as chunks of a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from pydantic import BaseModel

from deployments.protocol.answer_format import TEXT_ALONE, AnswerFormat, joined
from deployments.protocol.pieces import Content, Piece, ToolCall
from deployments.protocol.prompt_logprobs import prompt_logprobs_of
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.outputs import RequestOutput, TokenLogprobs
from entmtp.decoding.request import Request
from entmtp.decoding.token_texts import Position, TokenText, TokenTexts


class ResponseBuilder(ABC):
    """Builder of one body's response for an endpoint.

    Attributes:
        requests: the body's requests to the engine, one for each choice.
        answers: outputs of each so far, added up.
    """

    def __init__(
        self,
        id: str,
        model: str,
        detokenizer: Detokenizer,
        requests: Sequence[Request],
        fingerprint: str,
        prompt_logprobs: int | None,
        return_token_ids: bool,
    ) -> None:
        """Begin a response.

        Args:
            fingerprint: OpenAI's ``system_fingerprint``.
            prompt_logprobs: number of likeliest tokens of vLLM's field; None without the field.
            return_token_ids: whether vLLM's fields have the token ids of prompt and answer.
        """
        self.requests = requests
        self._detokenizer, self._prompt_logprobs = detokenizer, prompt_logprobs
        self._returns_token_ids = return_token_ids
        self.answers = [RequestOutput(one.id) for one in requests]
        self._token_texts = {
            index: TokenTexts(detokenizer, one.prompt if one.continues_text else ())
            for index, one in enumerate(requests)
            if one.params.logprobs is not None
        }
        created = int(time.time())
        self._base: dict[str, Any] = {"id": id, "model": model, "created": created, "system_fingerprint": fingerprint}

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

    def _token_ids(self, tokens: Sequence[int]) -> dict[str, Any]:
        """vLLM's field of a choice with the token ids of its answer, if they were requested."""
        return {"token_ids": list(tokens)} if self._returns_token_ids else {}

    def _prompt_token_ids(self, index: int) -> dict[str, Any]:
        """vLLM's field with the token ids of a choice's prompt, if they were requested."""
        return {"prompt_token_ids": list(self.requests[index].prompt)} if self._returns_token_ids else {}

    def _scored_prompt(self, index: int) -> dict[str, Any]:
        """vLLM's field with the log-probabilities of a choice's prompt, if they were requested."""
        if self._prompt_logprobs is None:
            return {}
        prompt, scores = self.requests[index].prompt, self.answers[index].prompt_logprobs
        return {"prompt_logprobs": prompt_logprobs_of(self._detokenizer, prompt, scores, self._prompt_logprobs)}

    def _positions(self, index: int, output: RequestOutput) -> list[Position]:
        """Texts and log-probabilities of the next tokens of a choice, if log-probabilities were requested."""
        if not output.logprobs or index not in self._token_texts:
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
        fingerprint: str,
        prompt_logprobs: int | None = None,
        return_token_ids: bool = False,
        answer_format: AnswerFormat = TEXT_ALONE,
    ) -> None:
        super().__init__(id, model, detokenizer, requests, fingerprint, prompt_logprobs, return_token_ids)
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
            | self._token_ids(answer.tokens)
            for index, answer in enumerate(self.answers)
        ]
        return ChatCompletion.model_validate(
            {**self._base, "object": "chat.completion", "choices": choices, "usage": usage, "metrics": metrics}
            | self._scored_prompt(0)
            | self._prompt_token_ids(0)
        )

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        choice = {"index": index, "delta": {"role": "assistant", "content": self._no_content}, "finish_reason": None}
        return self._chunk([choice], **self._prompt_token_ids(index))

    def chunks(self, index: int, output: RequestOutput) -> list[ChatCompletionChunk]:
        deltas = self._deltas(index, self._readers[index].read(output)) or [{"content": self._no_content}]
        choices: list[dict[str, Any]] = [
            {"index": index, "delta": delta, "finish_reason": None, "logprobs": None} for delta in deltas
        ]
        choices[0] |= {"logprobs": _chat_logprobs(self._positions(index, output))} | self._token_ids(output.tokens)
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


@dataclass(frozen=True)
class CompletionOptions:
    """Options of a response of /v1/completions.

    Attributes:
        prompt_logprobs, return_token_ids: as of :class:`ResponseBuilder`.
        echo: text of each prompt, which then comes before its answers.
        best: number of answers to each prompt that are returned; None: all.
        hides_logprobs: whether the log-probabilities are there for the choice of the best answers only.
    """

    prompt_logprobs: int | None
    return_token_ids: bool
    echo: Sequence[str] | None
    best: int | None
    hides_logprobs: bool


class CompletionResponseBuilder(ResponseBuilder):
    """Builder for /v1/completions, whose chunks have the format of the complete response."""

    def __init__(
        self,
        id: str,
        model: str,
        detokenizer: Detokenizer,
        requests: Sequence[Request],
        fingerprint: str,
        options: CompletionOptions,
    ) -> None:
        super().__init__(
            id, model, detokenizer, requests, fingerprint, options.prompt_logprobs, options.return_token_ids
        )
        self._options = options
        self._unstarted = set(range(len(requests)))
        if options.hides_logprobs:
            self._token_texts = {}
        elif options.echo is not None:
            self._token_texts = {index: TokenTexts(detokenizer) for index in self._token_texts}

    def full_response(self, usage: CompletionUsage, metrics: dict[str, Any] | None) -> Completion:
        choices = [
            self._choice(index, self.answers[index]) | self._scored_prompt(index) | {"index": position}
            for position, index in enumerate(self._returned())
        ]
        return self._completion(choices, usage=usage, metrics=metrics)

    def _returned(self) -> list[int]:
        """Indices of the answers that are returned: all, or of each prompt the best, best first."""
        if self._options.best is None:
            return list(range(len(self.answers)))
        by_prompt: dict[int, list[int]] = {}
        for index, request in enumerate(self.requests):
            by_prompt.setdefault(request.prompt_index, []).append(index)
        ranked = [sorted(group, key=self._mean_logprob, reverse=True) for group in by_prompt.values()]
        return [index for group in ranked for index in group[: self._options.best]]

    def _mean_logprob(self, index: int) -> float:
        logprobs = self.answers[index].logprobs
        return sum(one.chosen for one in logprobs) / max(1, len(logprobs))

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
        begins = index in self._unstarted
        self._unstarted.discard(index)
        if self._options.echo is None or not begins:
            text, logprobs = output.text, _completion_logprobs(self._positions(index, output))
        else:
            text = self._options.echo[self.requests[index].prompt_index] + output.text
            logprobs = self._echoed_logprobs(index, output)
        return {
            "index": index,
            "text": text,
            "finish_reason": output.finish_reason,
            "logprobs": logprobs,
            **self._token_ids(output.tokens),
            **(self._prompt_token_ids(index) if begins else {}),
        }

    def _echoed_logprobs(self, index: int, output: RequestOutput) -> dict[str, Any] | None:
        """Log-probabilities of a prompt, whose first token has none, and of the tokens after it."""
        prompt, count = self.requests[index].prompt, self.requests[index].params.logprobs or 0
        if index not in self._token_texts:
            return None
        scores = [TokenLogprobs(0.0, []), *(replace(one, top=one.top[:count]) for one in output.prompt_logprobs)]
        ended = output.finish_reason is not None
        positions = self._token_texts[index].take([*prompt, *output.tokens], [*scores, *output.logprobs], ended)
        logprobs = _completion_logprobs(positions) or {}
        for name in ("token_logprobs", "top_logprobs"):
            logprobs[name][0] = None
        return logprobs


def _completion_logprobs(positions: Sequence[Position]) -> dict[str, Any] | None:
    if not positions:
        return None
    return {
        "tokens": [one.chosen.text for one in positions],
        "token_logprobs": [one.chosen.logprob for one in positions],
        "top_logprobs": [{each.text: each.logprob for each in one.top} for one in positions],
        "text_offset": [one.offset for one in positions],
    }
