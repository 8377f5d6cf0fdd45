"""Short hashes of prompts; texts that count as the same prompt have the same hash."""

import hashlib

DIGITS = 16
"""Hexadecimal digits of a hash: among a million prompts, two collide with a chance of 1 in 37 million."""


def text_key(text: str) -> str:
    """Text with case folded and white space normalised; prompts with equal keys count as the same prompt."""
    return " ".join(text.casefold().split())


def prompt_hash(text: str) -> str:
    """First :data:`DIGITS` hexadecimal digits of the SHA-256 of the text's key."""
    return hashlib.sha256(text_key(text).encode(errors="surrogatepass")).hexdigest()[:DIGITS]
