"""Short names of prompts, the same for texts that count as the same prompt."""

import hashlib

DIGITS = 16
"""Hexadecimal digits of a name: among a million prompts, two share one with a chance of 1 in 37 million."""


def text_key(text: str) -> str:
    """The text without differences of case and white space; two prompts with one key are the same prompt."""
    return " ".join(text.casefold().split())


def prompt_hash(text: str) -> str:
    """The first :data:`DIGITS` hexadecimal digits of the SHA-256 of the text's key."""
    return hashlib.sha256(text_key(text).encode(errors="surrogatepass")).hexdigest()[:DIGITS]
