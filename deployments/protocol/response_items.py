"""Answers of POST /v1/responses: OpenAI's response object, and the events that lead to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from openai.types import CompletionUsage

from deployments.protocol.answer_format import AnswerReader
from deployments.protocol.errors import ApiError
from deployments.protocol.item_builder import Event, ItemBuilder
from deployments.protocol.pieces import Content, Reasoning, ToolCall
from deployments.protocol.responses_request import ResponsesRequest

_PARTS: dict[type[Reasoning] | type[Content], tuple[str, str]] = {
    Reasoning: ("reasoning", "reasoning_text"),
    Content: ("message", "output_text"),
}
"""Type of the item, and of its only part, by kind of text."""

_IDS = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class ResponseItems(ItemBuilder):
    """Builder of one response."""

    def __init__(self, body: ResponsesRequest, reader: AnswerReader, request_id: str) -> None:
        super().__init__(reader, request_id)
        self._output: list[dict[str, Any]] = []
        self._number = 0
        self._text = ""
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "text": {"format": _text_format(body)},
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "usage": None,
            **body.model_dump(
                mode="json",
                include={"model", "instructions", "max_output_tokens", "temperature", "top_p", "user", "reasoning"},
            ),
            **body.model_dump(mode="json", include={"tools", "tool_choice"}, exclude_none=True),
        }

    def result(self, usage: CompletionUsage) -> dict[str, Any]:
        cut_off = self.answer.finish_reason == "length"
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else 0
        return self._response | {
            "status": "incomplete" if cut_off else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut_off else None,
            "output": self._output,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": self.reader.reasoning_tokens},
                "total_tokens": usage.total_tokens,
                **(usage.model_extra or {}),
            },
        }

    def begin(self, usage: CompletionUsage) -> list[Event]:
        response = self._response | {"output": []}
        return [self._event(f"response.{name}", response=response) for name in ("created", "in_progress")]

    def end(self, usage: CompletionUsage) -> list[Event]:
        response = self.result(usage)
        return [self._event(f"response.{response['status']}", response=response)]

    def failed(self, error: ApiError) -> list[Event]:
        details = error.body()["error"]
        named = {"code": details["code"] or details["type"], "message": details["message"], "param": details["param"]}
        failure = {"code": "server_error", "message": details["message"]}
        response = self._response | {"status": "failed", "output": self._output, "error": failure}
        return [self._event("error", **named), self._event("response.failed", response=response)]

    def open_text(self, kind: type[Reasoning] | type[Content]) -> Iterator[Event]:
        item_type, part_type = _PARTS[kind]
        more = {"role": "assistant", "content": []} if kind is Content else {"summary": [], "content": []}
        yield self._add_item(item_type, more)
        self._text = ""
        yield self._part_event("response.content_part.added", part=_part(part_type, ""))

    def add_text(self, text: str) -> Iterator[Event]:
        self._text += text
        part_type = self._part_type
        yield self._part_event(f"response.{part_type}.delta", delta=text, **_logprobs(part_type))

    def close_text(self) -> Iterator[Event]:
        part_type = self._part_type
        part = _part(part_type, self._text)
        yield self._part_event(f"response.{part_type}.done", text=self._text, **_logprobs(part_type))
        yield self._part_event("response.content_part.done", part=part)
        yield self._end_item({"content": [part]})

    def call(self, call: ToolCall) -> Iterator[Event]:
        yield self._add_item("function_call", {"call_id": call.id, "name": call.name, "arguments": ""})
        of_item = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        yield self._event("response.function_call_arguments.delta", delta=call.arguments, **of_item)
        done = {"arguments": call.arguments, "name": call.name}
        yield self._event("response.function_call_arguments.done", **done, **of_item)
        yield self._end_item({"arguments": call.arguments})

    @property
    def _part_type(self) -> str:
        return "output_text" if self._output[-1]["type"] == "message" else "reasoning_text"

    def _add_item(self, item_type: str, more: dict[str, Any]) -> Event:
        item = {"type": item_type, "id": f"{_IDS[item_type]}_{uuid.uuid4().hex}", "status": "in_progress", **more}
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _end_item(self, more: dict[str, Any]) -> Event:
        item = self._output[-1] = self._output[-1] | {"status": "completed", **more}
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _part_event(self, name: str, /, **more: Any) -> Event:
        at = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, "content_index": 0}
        return self._event(name, **at, **more)

    def _event(self, name: str, /, **data: Any) -> Event:
        self._number += 1
        return Event(name, {"type": name, "sequence_number": self._number - 1, **data})


def _part(part_type: str, text: str) -> dict[str, Any]:
    annotations: dict[str, Any] = {"annotations": []} if part_type == "output_text" else {}
    return {"type": part_type, "text": text, **annotations, **_logprobs(part_type)}


def _logprobs(part_type: str) -> dict[str, Any]:
    return {"logprobs": []} if part_type == "output_text" else {}


def _text_format(body: ResponsesRequest) -> dict[str, Any]:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(mode="json", by_alias=True, exclude_none=True)
