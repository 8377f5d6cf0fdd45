"""Checks of single values of requests, whose errors say more than a type does."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError

_OTHER_PARTS = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "videos",
    "file": "files",
    "input_file": "files",
}
"""Contents of parts that OpenAI and vLLM know and no model here reads, by type."""


def not_before_others(priority: Any) -> Any:
    """Check that a priority is not negative."""
    if isinstance(priority, int) and priority < 0:
        raise PydanticCustomError(
            "priority", "no request may go before those of others; give 0, or more to wait longer"
        )
    return priority


def text_only(kind: Any) -> Any:
    """Check that a part is text; the error says what else it is."""
    if kind != "text":
        other = _OTHER_PARTS.get(kind) if isinstance(kind, str) else None
        context = {"other": f", and no {other}" if other else ""}
        raise PydanticCustomError("part_type", "the model reads text alone{other}; send parts of type 'text'", context)
    return kind
