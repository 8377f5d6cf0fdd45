"""Pages of other origins: what a browser lets them read of an answer."""

from __future__ import annotations

from collections.abc import Container

from starlette.datastructures import Headers
from starlette.types import Scope

EXPOSED = ["Retry-After", "X-Request-Id"]
"""Headers of answers that such pages may read."""


def cors_headers(scope: Scope, origins: Container[str]) -> dict[str, str]:
    """Headers with which a page may read the answer to its request, if ``origins`` have its own, or '*'."""
    origin = Headers(scope=scope).get("origin")
    if origin is None or not ("*" in origins or origin in origins):
        return {}
    return {
        "Access-Control-Allow-Origin": "*" if "*" in origins else origin,
        "Access-Control-Expose-Headers": ", ".join(EXPOSED),
        "Vary": "Origin",
    }
