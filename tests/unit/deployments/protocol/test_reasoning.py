"""Reasoning is split from the content, whatever the chunks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.protocol.reasoning import opens_reasoning
from tests.helpers.examples import examples
from tests.helpers.split_texts import chunks, split


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, ("Hm.", "Yes.")),
        ("\nHm.\n</think>\n\nYes.\n", True, ("Hm.", "Yes.\n")),
        ("Hm. <think> Hm.</think>Yes.", True, ("Hm. <think> Hm.", "Yes.")),
        ("<think></think>Yes.", False, ("", "Yes.")),
        ("<think>Hm. </thi", False, ("Hm. </thi", "")),
        ("Hm.  ", True, ("Hm.", "")),
        ("", True, ("", "")),
        (" Yes.\n", False, ("", " Yes.\n")),
        (" <thin", False, ("", " <thin")),
        ("Yes <think>no</think>", False, ("", "Yes <think>no</think>")),
        ("<think>a</think>b</think>c", False, ("a", "b</think>c")),
    ],
)
def test_reasoning_is_split_from_content(text: str, is_open: bool, expected: tuple[str, str]) -> None:
    assert split([text], is_open) == expected
    assert split(list(text), is_open) == expected


@settings(max_examples=examples(200), deadline=None)
@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", "a", " ", "\n"]), max_size=9).map("".join),
    is_open=st.booleans(),
    data=st.data(),
)
def test_chunks_do_not_matter(text: str, is_open: bool, data: st.DataObject) -> None:
    whole = split([text], is_open)
    assert split(data.draw(chunks(text)), is_open) == whole
    reasoning, content = whole
    if not is_open and not text.lstrip().startswith("<think>"):
        assert whole == ("", text)
    else:
        written = text if is_open else text.lstrip().removeprefix("<think>")
        assert "".join(written.replace("</think>", "", 1).split()) == "".join((reasoning + content).split())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_may_open_the_reasoning(prompt: str, expected: bool) -> None:
    assert opens_reasoning(prompt) == expected
