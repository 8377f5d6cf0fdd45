"""Proof that texts, such as training prompts, hold no benchmark prompts: a search for shared runs of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from entmtp.suites import get_suite
from entmtp.suites.base import Prompt, SuiteData

MIN_WORDS = 8
MIN_CHARACTERS = 50
# Scripts written without spaces count every character as a word, or a whole sentence would be one.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Overlap:
    """One text that shares `excerpt` (normalised words) with a benchmark prompt."""

    text_index: int
    suite: str
    prompt_id: str
    excerpt: str


def find_overlaps(texts: Iterable[str], suites: Iterable[SuiteData]) -> list[Overlap]:
    """The first shared run of each text with a benchmark prompt, in the texts' order; empty where there is none.

    A run counts from `MIN_WORDS` words and `MIN_CHARACTERS` characters on, case and punctuation aside. A text or
    prompt shorter than that counts only where both are the same as a whole.
    """
    index: dict[str, Prompt] = {}
    for data in suites:
        suite = get_suite(data.suite)
        for prompt in data.prompts:
            for window in _windows(suite.benchmark_text(prompt)):
                index.setdefault(window, prompt)
    hits = []
    for number, text in enumerate(texts):
        shared = next((window for window in _windows(text) if window in index), None)
        if shared is not None:
            prompt = index[shared]
            hits.append(Overlap(number, prompt.suite, prompt.id, shared))
    return hits


def _windows(text: str) -> Iterator[str]:
    """For each starting word the shortest run that is long enough; a short text as a whole.

    A window depends only on the words from its start on, so two texts share a long run exactly if they share a window.
    """
    words = _WORD.findall(text.casefold())
    end, found = 0, False
    for start in range(len(words)):
        end = max(end, start + MIN_WORDS)
        while end <= len(words) and len(" ".join(words[start:end])) < MIN_CHARACTERS:
            end += 1
        if end > len(words):
            break
        found = True
        yield " ".join(words[start:end])
    if words and not found:
        yield " ".join(words)
