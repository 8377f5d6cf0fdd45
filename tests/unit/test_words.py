"""The field's words: names and docstrings use none of the home-made ones that were retired."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

RETIRED = {
    "asked": "requested",
    "begun": "started",
    "behind": "after",
    "belief": "acceptance bias",
    "beliefs": "acceptance biases",
    "beside": "with, next to",
    "canvas": "plot style",
    "dear": "expensive",
    "foretold": "predicted",
    "forecast": "dry run",
    "grown": "expanded",
    "growth": "expansion",
    "held": "stored, staged",
    "joint": "merged",
    "kept": "committed, stored",
    "mood": "state",
    "obstacle": "unsupported reason",
    "place": "position, device, slot, cache row, node",
    "placed": "assigned",
    "places": "positions, devices, slots",
    "relay": "failover",
    "rewind": "truncate",
    "shed": "evict",
    "told": "reported",
    "verdicts": "conclusions",
    "worth": "value, token price",
}
"""By word: what is written instead."""

ALLOWED = {
    "held": ("held_out", "held-out", "HELD_OUT", "held out"),  # machine learning's word for data not trained on
    "place": ("in_place", "in place", "inplace"),  # PyTorch's word for an operation on its own input
    "grown": ("grown_draft_ms",),  # a field of hardware profiles, a public format
}
"""By word: where it stays, each with the reason."""

FOLDERS = ("entmtp", "deployments", "jobs", "benchmarks", "examples")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
_BEGINNINGS = ("Of", "That", "Who", "Which", "What", "Whose", "How")


def words_of(text: str) -> Iterator[str]:
    """The words of a name or a text, in lower case: of ``CorrectedCost`` and ``corrected_cost`` the same."""
    return (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text))


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings, and texts that stand after a name as its explanation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def retired_words(source: str) -> list[str]:
    """Every retired word of a module's identifiers and docstrings, with the text that it is in."""
    names = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)]
    identifiers = [name for name in names if name.isidentifier()]
    found = []
    for text in [*identifiers, *docstrings(ast.parse(source))]:
        cleaned = text
        for phrase in (phrase for phrases in ALLOWED.values() for phrase in phrases):
            cleaned = cleaned.replace(phrase, "")
        found += [f"{word} ({RETIRED[word]}): {text[:60]!r}" for word in words_of(cleaned) if word in RETIRED]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_docstrings_use_the_fields_words(path: Path) -> None:
    assert retired_words(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_noun_or_an_imperative(path: Path) -> None:
    texts = (text.split() for text in docstrings(ast.parse(path.read_text(encoding="utf-8"))))
    assert [" ".join(words[:6]) for words in texts if words and words[0] in _BEGINNINGS] == []


def test_retired_words_are_seen_in_every_spelling() -> None:
    source = (
        'class TreeBelief:\n    """A node beside it."""\n\n\ndef in_place(keptRows: int, held_out: int) -> None: ...\n'
    )
    assert [found.split()[0] for found in retired_words(source)] == ["belief", "kept", "beside"]


def test_no_file_is_longer_than_400_lines() -> None:
    folders = ("entmtp", "deployments", "jobs", "benchmarks", "tests")
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for name in folders
        for path in (ROOT / name).rglob("*.py")
    }
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 400} == {}
