"""Formats of tool calls: a file each, and one line here."""

from deployments.protocol.tool_formats.hermes import Hermes
from deployments.protocol.tool_formats.interface import ToolFormat
from deployments.protocol.tool_formats.llama3_json import Llama3Json
from deployments.protocol.tool_formats.mistral import Mistral
from deployments.protocol.tool_formats.pythonic import Pythonic

DEFAULT_FORMAT = Hermes()
"""Format for models whose chat template takes no tools, or describes an unknown format."""

TOOL_FORMATS: dict[str, ToolFormat] = {
    one.name: one
    for one in (
        Mistral(),
        Pythonic(),
        Llama3Json(),
        DEFAULT_FORMAT,
    )
}
"""All formats by name; the first one that a template describes is the template's."""


def format_in_template(template: str) -> ToolFormat | None:
    """Format that a chat template describes; None if none is known."""
    return next((one for one in TOOL_FORMATS.values() if one.in_template(template)), None)
