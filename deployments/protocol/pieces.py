"""Pieces of an answer: reasoning, content and tool calls, as an answer's text is taken apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reasoning:
    """Next part of the text in which the model thinks."""

    text: str


@dataclass(frozen=True)
class Content:
    """Next part of the text for the user."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A complete call of a function.

    Attributes:
        id: names the call in the next turn of the chat.
        arguments: a JSON object as the model wrote it.
    """

    id: str
    name: str
    arguments: str


Piece = Reasoning | Content | ToolCall
