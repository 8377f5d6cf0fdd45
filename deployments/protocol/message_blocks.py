"""Answers of POST /v1/messages: Anthropic's message object, and the events that lead to it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from openai.types import CompletionUsage

from deployments.protocol.answer_format import AnswerReader
from deployments.protocol.anthropic_errors import anthropic_body
from deployments.protocol.errors import ApiError
from deployments.protocol.item_builder import Event, ItemBuilder
from deployments.protocol.pieces import Content, Reasoning, ToolCall
from entmtp.decoding.detokenizer import Detokenizer


class MessageBlocks(ItemBuilder):
    """Builder of one message.

    Args:
        stop: texts that end the answer.
    """

    def __init__(
        self, model: str, stop: Sequence[str], detokenizer: Detokenizer, reader: AnswerReader, request_id: str
    ) -> None:
        super().__init__(reader, request_id)
        self._stop, self._detokenizer = stop, detokenizer
        self._blocks: list[dict[str, Any]] = []
        self._message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def result(self, usage: CompletionUsage) -> dict[str, Any]:
        return self._message | {"content": self._blocks, **self._end(), "usage": _usage(usage)}

    def begin(self, usage: CompletionUsage) -> list[Event]:
        return [_event("message_start", message=self._message | {"usage": _usage(usage)})]

    def end(self, usage: CompletionUsage) -> list[Event]:
        return [_event("message_delta", delta=self._end(), usage=_usage(usage)), _event("message_stop")]

    def failed(self, error: ApiError) -> list[Event]:
        return [Event("error", anthropic_body(error.body()))]

    def open_text(self, kind: type[Reasoning] | type[Content]) -> Iterator[Event]:
        block = (
            {"type": "text", "text": ""} if kind is Content else {"type": "thinking", "thinking": "", "signature": ""}
        )
        yield self._start(block)

    def add_text(self, text: str) -> Iterator[Event]:
        field = "text" if self._blocks[-1]["type"] == "text" else "thinking"
        self._blocks[-1][field] += text
        yield self._delta({"type": f"{field}_delta", field: text})

    def close_text(self) -> Iterator[Event]:
        if self._blocks[-1]["type"] == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield self._stop_block()

    def call(self, call: ToolCall) -> Iterator[Event]:
        yield self._start({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        self._blocks[-1]["input"] = json.loads(call.arguments)
        yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        yield self._stop_block()

    def _start(self, block: dict[str, Any]) -> Event:
        self._blocks.append(dict(block))
        return _event("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> Event:
        return _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _stop_block(self) -> Event:
        return _event("content_block_stop", index=len(self._blocks) - 1)

    def _end(self) -> dict[str, Any]:
        """Reason of the end, and the stop sequence if one is the reason."""
        if self.answer.finish_reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if self.reader.called:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        found = self._stop_sequence() if self._stop else None
        return {"stop_reason": "end_turn" if found is None else "stop_sequence", "stop_sequence": found}

    def _stop_sequence(self) -> str | None:
        """Stop text at the end of what the model wrote, which the answer's text leaves out."""
        left_out = self._detokenizer.decode(self.answer.tokens)[len(self.answer.text) :]
        return next((one for one in self._stop if left_out.startswith(one)), None)


def _usage(usage: CompletionUsage) -> dict[str, Any]:
    """Anthropic's usage, where cached tokens are not among the input's."""
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens if details is not None else 0) or 0
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
        **(usage.model_extra or {}),
    }


def _event(name: str, /, **data: Any) -> Event:
    return Event(name, {"type": name, **data})
