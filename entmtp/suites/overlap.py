"""Search for benchmark prompts in texts, such as training prompts, by shared runs of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from entmtp.suites import get_suite
from entmtp.suites.base import Prompt, SuiteData

MIN_WORDS = 8
MIN_CHARACTERS = 50
# In scripts without spaces each character counts as a word, since a whole sentence would otherwise be one.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Overlap:
    """A text that shares the words `excerpt` (normalised) with a benchmark prompt."""

    text_index: int
    suite: str
    prompt_id: str
    excerpt: str


def find_overlaps(texts: Iterable[str], suites: Iterable[SuiteData]) -> list[Overlap]:
    """The texts that share a run of words with a benchmark prompt, each with its first such run, in order.

    A run has at least `MIN_WORDS` words and `MIN_CHARACTERS` characters, ignoring case and punctuation. A shorter text
    or prompt counts only if both are equal as a whole.
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
    """For each first word the shortest run that is long enough; a short text as a whole.

    A window depends only on the words from its start, so two texts share a long run if and only if they share a window.
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
