"""Split of prompts into a calibration and a scored half, by a hash of their text so that every run has the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from entmtp.errors import EntMTPError
from entmtp.prompt_hash import text_key
from entmtp.suites.base import Prompt


def split(prompts: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Split prompts into (calibration, scored), about half each, in the given order.

    A prompt's half depends only on its key, or its text if it has none. So a bank calibrated on any subset of a suite
    can be scored on any other subset, in another run and from another file, without a prompt in both.
    """
    calibration = tuple(prompt for prompt in prompts if _calibrates(prompt))
    scored = tuple(prompt for prompt in prompts if not _calibrates(prompt))
    return calibration, scored


def draw(prompts: Sequence[Prompt], count: int, seed: int) -> tuple[Prompt, ...]:
    """Sample `count` prompts (all if there are fewer) by a seeded hash, in their original order.

    A smaller sample is a subset of a larger one with the same seed.
    """
    if count < 1:
        raise EntMTPError(f"count {count} is below 1; draw at least one prompt")
    ranked = sorted(range(len(prompts)), key=lambda index: _hash(f"{seed}\n{_key(prompts[index])}"))
    return tuple(prompts[index] for index in sorted(ranked[:count]))


def _calibrates(prompt: Prompt) -> bool:
    return _hash(_key(prompt)) % 2 == 0


def _key(prompt: Prompt) -> str:
    return text_key(prompt.key or prompt.text)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest(), "big")
