"""EntMTP: faster text from a causal language model, token for token its own.

    from entmtp import LLM, SamplingParams

Exports are loaded when they are first used, so that ``import entmtp`` and the command line's help cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entmtp.decoding.engine import Engine
    from entmtp.decoding.outputs import Completion, RequestOutput
    from entmtp.decoding.request import Request
    from entmtp.errors import EntMTPError
    from entmtp.llm import LLM
    from entmtp.settings import EngineSettings, SamplingParams
    from entmtp.structured import Structured

__version__ = "0.2.0"

_LIES_IN = {
    "LLM": "entmtp.llm",
    "SamplingParams": "entmtp.settings",
    "Structured": "entmtp.structured",
    "EngineSettings": "entmtp.settings",
    "Engine": "entmtp.decoding.engine",
    "Request": "entmtp.decoding.request",
    "Completion": "entmtp.decoding.outputs",
    "RequestOutput": "entmtp.decoding.outputs",
    "EntMTPError": "entmtp.errors",
}

__all__ = [
    "LLM",
    "Completion",
    "Engine",
    "EngineSettings",
    "EntMTPError",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "Structured",
]


def __getattr__(name: str) -> Any:
    if name not in _LIES_IN:
        raise AttributeError(f"module 'entmtp' has no attribute '{name}'")
    return getattr(import_module(_LIES_IN[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
