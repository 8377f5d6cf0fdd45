"""A model's chat template: the variables that it takes, and how it has the model write calls and reasoning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from deployments.protocol.answer_format import AnswerFormat
from deployments.protocol.chat_turns import Chat, described_turns, native_turns
from deployments.protocol.errors import invalid_value
from deployments.protocol.reasoning import CLOSE, MARKERS, OPEN, opens_reasoning
from deployments.protocol.tool_formats import DEFAULT_FORMAT, TOOL_FORMATS, format_in_template
from deployments.settings import EngineArgs

_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""Tags of transformers' own that mark an answer for training."""

_OF_SERVICE = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Variables that a request has fields for, or that this service sets itself."""

_SWITCHES = "enable_thinking", "thinking"
"""Variables that turn reasoning on or off: Qwen3's and SmolLM3's; DeepSeek-V3.1's and Granite's."""

_ANY_TOOL: list[Any] = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]


class ChatTemplate:
    """Chat template of an engine's model, which must have one.

    Attributes:
        tool_format: format in which the model writes calls.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, args: EngineArgs) -> None:
        self._tokenizer = tokenizer
        # A model may have a template of its own for chats with tools.
        text = str(tokenizer.get_chat_template(tools=_ANY_TOOL))
        self._variables = _variables(text)
        described = format_in_template(text)
        chosen = described if args.tool_format == "auto" else TOOL_FORMATS[args.tool_format]
        self._knows_tools = "tools" in self._variables and chosen is not None
        self.tool_format = chosen if chosen is not None and self._knows_tools else DEFAULT_FORMAT
        self._reasons = {"auto": OPEN in text or CLOSE in text, "think": True, "none": False}[args.reasoning_format]
        special = {each.content: id for id, each in tokenizer.added_tokens_decoder.items() if each.special}
        self._tool_markers = {special[one]: one for one in self.tool_format.markers if one in special}
        self._reasoning_markers = {special[one]: one for one in MARKERS if one in special and self._reasons}

    def render(self, chat: Chat) -> str:
        """The chat as text.

        Raises:
            ApiError: the template refuses the chat, or a variable is not the client's to set.
        """
        turns: Any = native_turns(chat.messages) if self._knows_tools else described_turns(chat.messages, chat.tools)
        given = self._given_variables(chat.variables)
        if self._knows_tools and chat.tools:
            given["tools"] = [one.function.for_template() for one in chat.tools]
        given["add_generation_prompt"] = not chat.continues if chat.adds_header is None else chat.adds_header
        given["continue_final_message"] = chat.continues
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, **given))
        except (TemplateError, ValueError) as error:  # a ValueError: the last message's text is not in the chat's
            message = f"{chat.field}: the model's chat template refuses them: {error}"
            raise invalid_value(message, chat.field) from error
        except Exception as error:  # a template may fail in any way on a variable or a schema
            reason = f"{type(error).__name__}, {str(error)[:200]}"
            message = f"{chat.field}: the model's chat template fails on them: {reason}; change them"
            raise invalid_value(message, chat.field) from error

    def answer_format(
        self, chat: Chat, prompt: str, *, parallel_calls: bool = True, shows_reasoning: bool = True
    ) -> AnswerFormat:
        """Format of the answers to a chat whose text is ``prompt``."""
        markers = self._reasoning_markers | (self._tool_markers if chat.tools else {})
        return AnswerFormat(
            tool_format=self.tool_format if chat.tools else None,
            functions=frozenset(one.function.name for one in chat.tools),
            parallel_calls=parallel_calls,
            reasons=self._reasons,
            opens_reasoning=self._reasons and opens_reasoning(prompt),
            shows_reasoning=shows_reasoning,
            markers=markers,
        )

    def _given_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The client's variables that the template takes; it has no use for others."""
        if taken := next((name for name in variables if name in _OF_SERVICE), None):
            message = f"chat_template_kwargs.{taken}: the service sets it; leave it out"
            raise invalid_value(message, f"chat_template_kwargs.{taken}")
        given = {name: value for name, value in variables.items() if name in self._variables}
        if "reasoning_effort" in variables and "reasoning_effort" not in given:
            reasons = variables["reasoning_effort"] != "none"
            given = {name: reasons for name in _SWITCHES if name in self._variables} | given
        return given


def _variables(template: str) -> frozenset[str]:
    """Variables of a template; none of one that can't be parsed, which is reported when it is used."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # never renders
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", template))))
    except TemplateError:
        return frozenset()
