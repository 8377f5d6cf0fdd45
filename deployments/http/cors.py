"""CORS headers for responses that the proxy makes itself."""

from __future__ import annotations

from collections.abc import Container

from starlette.datastructures import Headers
from starlette.types import Scope

EXPOSED = ["Retry-After", "X-Request-Id"]
"""Response headers that pages of other origins may read."""


def cors_headers(scope: Scope, origins: Container[str]) -> dict[str, str]:
    """Headers that let a page read the response, if ``origins`` contain the page's origin or '*'."""
    origin = Headers(scope=scope).get("origin")
    if origin is None or not ("*" in origins or origin in origins):
        return {}
    return {
        "Access-Control-Allow-Origin": "*" if "*" in origins else origin,
        "Access-Control-Expose-Headers": ", ".join(EXPOSED),
        "Vary": "Origin",
    }
