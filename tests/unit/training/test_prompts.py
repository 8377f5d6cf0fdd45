import ast
import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from entmtp.settings import PromptMixSettings
from entmtp.training import prompts as module
from entmtp.training.prompts import chat_prompts, code_prompts, math_prompts, mixed_prompts, story_prompts


def conversation(*turns: tuple[str, str]) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


RECORDS = [
    conversation(
        ("system", "Be kind."), ("human", " How do I bake bread? "), ("gpt", "Mix {flour}."), ("human", "And?")
    ),
    conversation(("gpt", "Nobody asked me.")),
    conversation(("human", "Hi")),
    conversation(("human", "x" * 901)),
    {"id": "empty"},
    conversation(("human", 'Write {code} in "C", please.')),
]
FIRST_TURNS = ["How do I bake bread?", 'Write {code} in "C", please.']
LIST = json.dumps(RECORDS, indent=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LIST, FIRST_TURNS),
        ("\n".join(map(json.dumps, RECORDS)), FIRST_TURNS),
        (LIST[: LIST.rindex("please")], FIRST_TURNS[:1]),
        (LIST[: LIST.rindex("]")], FIRST_TURNS),
        ("[]", []),
        ("", []),
    ],
    ids=["list", "lines", "cut within a record", "cut between records", "no records", "empty"],
)
def test_chat_prompts_are_the_first_human_turns(text: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(text, encoding="utf-8")
    assert chat_prompts(path) == expected


ODD = conversation(("human", "Is \\ an escape, or \u00e9 or \U0001f600?"))
ODD |= {"score": -1.5e-07, "good": True, "no": None}


@pytest.mark.parametrize("after", ["", "\n"], ids=["nothing", "a line's end"])
@pytest.mark.parametrize(
    "text",
    [json.dumps([ODD, ODD], indent=1), json.dumps([ODD, ODD]), 2 * f"{json.dumps(ODD)}\n"],
    ids=["list", "list on one line", "lines"],
)
def test_a_file_may_end_anywhere(text: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    found = []
    for end in range(len(text) + 1):
        path.write_text(text[:end] + after, encoding="utf-8")
        found.append(len(chat_prompts(path)))
    assert found == sorted(found)
    assert set(found) == {0, 1, 2}


GOOD = json.dumps(RECORDS[0])
BROKEN = {
    "cut off within a text": f"{GOOD[: GOOD.index('Be kind')]}\n{GOOD}",
    "cut off before a value": f"{GOOD[: GOOD.index('[')]}\n{GOOD}",
    "cut off before its end": f"{GOOD[:-1]}\n{GOOD}",
    "no end of its list": f"{GOOD[:-2]},\n{GOOD}]",
    "no quote before a text": GOOD.replace('"human"', 'human"', 1),
    "no quote behind a text": GOOD.replace('"human"', '"human', 1),
    "a line's end in a text": GOOD.replace("And?", "And\n?"),
    "no value": GOOD.replace('"x"', "tru"),
    "a comma too many": f"{GOOD[:-1]},}}",
    "an endless number": f'{{"id": {"1" * 5000}}}',
}


@pytest.mark.parametrize("after", ["", f"\n{GOOD}\n"], ids=["last", "in the middle"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_named(kind: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(f"{GOOD}\n\n{BROKEN[kind]}{after}", encoding="utf-8")
    with pytest.raises(EntMTPError) as refused:
        chat_prompts(path)
    assert str(refused.value).startswith(f"sharegpt: {path}, record 2, line 3: broken JSON (")
    assert str(refused.value).endswith("; mend the record")


SOURCE = '''
import os

def area(width: float, height: float = 1.0) -> float:
    """The area of a rectangle with the given width and height."""
    return width * height

def _hidden(width):
    """A helper whose docstring is long enough to be asked for here."""

def short(width):
    """Too short."""

def nothing():
    """A function without arguments whose docstring is long enough."""

class Shape:
    def grow(self, factor):
        """A method whose docstring is long enough, but that has a self."""
'''


def test_code_prompts_ask_for_documented_functions_without_their_bodies(tmp_path: Path) -> None:
    good, bad, binary = (tmp_path / name for name in ("good.py", "bad.py", "binary.py"))
    good.write_text(SOURCE, encoding="utf-8")
    bad.write_text("def broken(:", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    (prompt,) = code_prompts([bad, binary, good], random.Random(0))
    assert "def area(width: float, height: float=1.0):" in prompt
    assert "The area of a rectangle" in prompt
    assert "return" not in prompt.replace("return only the code", "")
    head = prompt[prompt.index("def area") :].removesuffix("\n```")
    assert isinstance(ast.parse(head).body[0], ast.FunctionDef)


@pytest.mark.parametrize("make", [math_prompts, story_prompts])
def test_made_up_prompts_depend_on_the_seed_and_leave_no_gap(make: Callable[[int, random.Random], list[str]]) -> None:
    prompts = make(30, random.Random(1))
    assert prompts == make(30, random.Random(1))
    assert prompts != make(30, random.Random(2))
    assert len(set(prompts)) > 20
    assert not any(sign in prompt for prompt in prompts for sign in "{}")


def test_the_mix_has_every_kind_and_no_filtered_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of all installed code, which takes minutes to read, the first few files.
    few = list(itertools.islice(module._installed_sources(), 60))
    monkeypatch.setattr(module, "_installed_sources", lambda: few)
    path = tmp_path / "sharegpt.json"
    path.write_text(LIST, encoding="utf-8")
    settings = PromptMixSettings(chat=5, code=3, math=4, stories=4)

    def without_bread(prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in prompts if "bread" not in prompt]

    mixed = mixed_prompts(path, without_bread, settings)
    assert FIRST_TURNS[1] in mixed
    assert not any("bread" in prompt for prompt in mixed)
    assert sum("def " in prompt for prompt in mixed) == settings.code
    assert len(mixed) > 1 + settings.code + settings.math
    assert mixed == mixed_prompts(path, without_bread, settings)
