"""Download of draft heads from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entmtp.errors import EntMTPError


def download(name: str, patterns: Sequence[str]) -> Path:
    """Download the files of a hub repository that match one of ``patterns``; return the local folder.

    Raises:
        EntMTPError: if the download fails.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises many types; each means that the download failed
        raise EntMTPError(
            f"heads: '{name}' is neither a local folder nor a reachable hub repository ({type(error).__name__});"
            " give a folder, or a hub name while online"
        ) from error
