"""Suites beyond the paper's four, their variants, and files with other schemas."""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from entmtp import json_lines
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import transfer_suite
from entmtp.suites import (
    FAMILIES,
    MIXED,
    PAPER_SUITES,
    SUITES,
    Prompt,
    draw,
    get_suite,
    load_suite,
    split,
    suite_names,
)
from entmtp.suites.gsm8k import final_number
from entmtp.suites.load import SAMPLES
from entmtp.suites.protocols import PROTOCOLS
from entmtp.suites.sharegpt import MAX_CONVERSATION_CHARACTERS
from tests.helpers.paths import ROOT

QUESTION = {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Make it shorter."]}


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talk(*turns: tuple[str, str]) -> dict[str, object]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}


def error_of(name: str, file: Path | None) -> str:
    with pytest.raises(EntMTPError) as caught:
        load_suite(name, file)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the registry and the table --------------------------------------------------------------------------------------


def test_the_default_is_the_papers_four_and_a_group_means_all_of_it() -> None:
    assert suite_names([]) == list(PAPER_SUITES) == ["humaneval", "gsm8k", "sharegpt", "litbench"]
    six = ["conversation", "translation", "summarization", "qa", "math-reasoning", "rag"]
    assert suite_names(["spec-bench", "gsm8k-8-shot", "spec-bench-qa"]) == [
        *(f"spec-bench-{task}" for task in six),
        "gsm8k-8-shot",
    ]


@pytest.mark.parametrize(
    "name", ["gsm8k-0-shot", "gsm8k-9-shot", "sharegpt-1-turns", "sharegpt-17-turns", "gsm8k-x-shot"]
)
def test_variants_that_there_are_not(name: str) -> None:
    with pytest.raises(EntMTPError, match=rf"^(suite {name}:|unknown suite '{name}';)"):
        suite_names([name])


def test_every_suite_has_its_row_in_the_table_and_only_the_papers_have_banks() -> None:
    assert {suite.protocol for suite in SUITES.values()} < set(PROTOCOLS.values())
    assert {name: suite.protocol.bank for name, suite in SUITES.items()} == {
        name: name if name in PAPER_SUITES else MIXED for name in SUITES
    }
    assert [name for name, suite in SUITES.items() if suite.protocol.score] == ["humaneval", "gsm8k", "math500", "mbpp"]
    transfers = {family: transfer_suite(family) for family in FAMILIES}
    assert set(transfers.values()) <= set(PAPER_SUITES), "they have banks"
    assert all(family != other for family, other in transfers.items())
    assert PROTOCOLS["gsm8k"].token_budget(24) == 24
    assert PROTOCOLS["gsm8k"].token_budget(10**6) == PROTOCOLS["gsm8k"].max_new_tokens


def test_the_page_about_suites_names_every_one_with_its_budget() -> None:
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9N-]+)` \|.*\| ([\d,]+) \|[^|]*\|[^|]*\|[^|]*\|$", page, re.MULTILINE))
    documented = {name: int(tokens.replace(",", "")) for name, tokens in rows.items()}
    assert documented == {name: protocol.max_new_tokens for name, protocol in PROTOCOLS.items()}


# --- GSM8K after worked examples -------------------------------------------------------------------------------------


def test_worked_examples_come_before_the_question_and_change_neither_sides_nor_draws() -> None:
    plain = load_suite("gsm8k", SAMPLES / "gsm8k.jsonl").prompts
    shown = load_suite("gsm8k-8-shot", SAMPLES / "gsm8k.jsonl").prompts
    for bare, prompt in zip(plain, shown, strict=True):
        assert prompt.text.count("Question: ") == 9
        assert prompt.text.endswith(f"\n\nQuestion: {bare.text}\nAnswer:")
        assert get_suite(prompt.suite).score(prompt, bare.reference["answer"]) == 1.0

    def numbers(prompts: Sequence[Prompt]) -> list[str]:
        return [prompt.id.rpartition("/")[2] for prompt in prompts]

    assert numbers(split(plain)[1]) == numbers(split(shown)[1])
    assert numbers(draw(plain, 7, seed=1)) == numbers(draw(shown, 7, seed=1))
    assert load_suite("gsm8k-2-shot", SAMPLES / "gsm8k.jsonl").prompts[0].text.count("Question: ") == 3


def test_worked_examples_are_right_and_none_of_them_is_ever_scored() -> None:
    rows = [json.loads(line) for line in (SAMPLES / "gsm8k_shots.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["question"] for row in rows}) == 8
    scored = {prompt.text for prompt in load_suite("gsm8k", SAMPLES / "gsm8k.jsonl").prompts}
    for row in rows:
        assert row["question"] not in scored
        equations = re.findall(r"(\d+(?: [-+*/] \d+)+) = (\d+)", row["answer"])
        assert len(equations) >= 2
        for left, right in equations:
            assert _value(left) == int(right), left
        assert str(final_number(row["answer"])) == row["answer"].rpartition("#### ")[2]
        assert int(equations[-1][1]) == int(row["answer"].rpartition("#### ")[2])


def _value(sum_in_words: str) -> float:
    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            return {"Add": left + right, "Sub": left - right, "Mult": left * right, "Div": left / right}[
                type(node.op).__name__
            ]
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return float(node.value)

    return value(ast.parse(sum_in_words, mode="eval").body)


# --- conversations ---------------------------------------------------------------------------------------------------


def test_sharegpt_turns_come_with_the_turns_before_them(tmp_path: Path) -> None:
    long = "y" * MAX_CONVERSATION_CHARACTERS
    rows = [
        talk(
            ("gpt", "Hi!"),
            ("human", "A fruit?"),
            ("gpt", " Apple. "),
            ("user", "Another?"),
            ("gpt", "Pear."),
            ("human", "3"),
        ),
        talk(("human", "Only one turn."), ("gpt", "Yes.")),
        talk(("human", "Twice"), ("human", "in a row"), ("gpt", "?"), ("human", "more")),
        talk(("human", "Long."), ("gpt", long), ("human", "Too long.")),
        talk(("human", " "), ("gpt", "?"), ("human", "Behind a blank.")),
        talk(("human", "A tree?"), ("chatgpt", "Oak."), ("human", "Another?")),
    ]
    file = write_lines(tmp_path / "s.jsonl", rows)
    prompts = load_suite("sharegpt-2-turns", file).prompts
    assert [(prompt.id, prompt.text, prompt.history) for prompt in prompts] == [
        ("sharegpt-2-turns/0", "Another?", (("user", "A fruit?"), ("assistant", "Apple."))),
        ("sharegpt-2-turns/5", "Another?", (("user", "A tree?"), ("assistant", "Oak."))),
    ]
    assert [prompt.key for prompt in prompts] == ["A fruit?", "A tree?"], "a conversation is on its opening's side"
    assert [prompt.text for prompt in load_suite("sharegpt-3-turns", file).prompts] == ["3"]
    assert len(load_suite("sharegpt", file).prompts) == 5


def test_mt_bench_asks_both_turns_and_leaves_the_first_for_the_model_to_answer(tmp_path: Path) -> None:
    second = QUESTION | {"question_id": "x", "turns": ["2 + 2?"], "category": "math", "reference": ["4"]}
    prompts = load_suite("mt-bench", write_lines(tmp_path / "q.jsonl", [QUESTION, second])).prompts
    assert [(prompt.id, prompt.text, prompt.history, prompt.reference) for prompt in prompts] == [
        ("mt-bench/81/1", "Write a poem.", (), {"category": "writing"}),
        ("mt-bench/81/2", "Make it shorter.", (("user", "Write a poem."),), {"category": "writing"}),
        ("mt-bench/x/1", "2 + 2?", (), {"category": "math", "reference": "4"}),
    ]
    assert len(draw(prompts, 2, seed=0)) == 2
    assert len({id(side) for side in split(prompts) for prompt in side if prompt.id.startswith("mt-bench/81")}) == 1


def test_spec_bench_is_six_suites_of_one_file(tmp_path: Path) -> None:
    categories = ["writing", "coding", "translation", "summarization", "qa", "math_reasoning", "rag"]
    rows = [QUESTION | {"question_id": n, "category": name, "turns": [f"Do {n}."]} for n, name in enumerate(categories)]
    file = write_lines(tmp_path / "question.jsonl", rows)
    found = {name: [prompt.id for prompt in load_suite(name, file).prompts] for name in suite_names(["spec-bench"])}
    assert found == {
        "spec-bench-conversation": ["spec-bench/0/1", "spec-bench/1/1"],
        "spec-bench-translation": ["spec-bench/2/1"],
        "spec-bench-summarization": ["spec-bench/3/1"],
        "spec-bench-qa": ["spec-bench/4/1"],
        "spec-bench-math-reasoning": ["spec-bench/5/1"],
        "spec-bench-rag": ["spec-bench/6/1"],
    }


def test_custom_takes_prompts_and_conversations(tmp_path: Path) -> None:
    messages = [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Hi {you}!"))]
    more = [*messages, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye."}]
    rows = [{"prompt": " Why? "}, {"id": "b", "messages": messages}, {"id": 7, "messages": more}, {"prompt": " "}]
    prompts = load_suite("custom", write_lines(tmp_path / "c.jsonl", rows)).prompts
    system = ("system", "Be brief.")
    assert [(prompt.id, prompt.text, prompt.history) for prompt in prompts] == [
        ("custom/0", "Why?", ()),
        ("custom/b", "Hi {you}!", (system,)),
        ("custom/7", "Bye.", (system, ("user", "Hi {you}!"), ("assistant", "Hi."))),
    ]


# --- files that are none of theirs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mt-bench", "spec-bench-rag", "custom"])
def test_suites_without_prompts_say_what_to_give(name: str) -> None:
    family = get_suite(name).family
    assert re.search(rf"suite {name} comes with no prompts: .*--data {family}=FILE\): \S+", error_of(name, None))


MALFORMED = {
    "not JSON": ("mt-bench", b"question: what?\n", "line 1: broken JSON"),
    "cut off": ("custom", b'{"prompt": "a"}\n{"prompt": "b', "line 2: broken JSON"),
    "empty": ("custom", b"", "q.jsonl is empty"),
    "wrong schema": ("mt-bench", b'{"question": "a", "answer": "#### 1"}\n', "line 1: column 'question_id' is missing"),
    "missing field": ("mt-bench", b'\n{"question_id": 1, "category": "qa"}\n', "line 2: column 'turns' is missing"),
    "wrong type": (
        "mt-bench",
        b'{"question_id": 1, "category": "qa", "turns": "a"}\n',
        "line 1: column 'turns' is wrong: Input should be a valid list",
    ),
    "no turns": ("mt-bench", b'{"question_id": 1, "category": "qa", "turns": []}\n', "line 1: column 'turns' is wrong"),
    "a blank turn": (
        "mt-bench",
        b'{"question_id": 1, "category": "qa", "turns": [" "]}\n',
        "line 1: column 'turns.0' is wrong",
    ),
    "a category of nobody's": (
        "spec-bench-qa",
        b'{"question_id": 1, "category": "cooking", "turns": ["a"]}\n',
        "line 1: column 'category' is wrong: Value error, 'cooking' is none of ",
    ),
    "no task's questions": (
        "spec-bench-rag",
        b'{"question_id": 1, "category": "qa", "turns": ["a"]}\n',
        "no usable prompt in 1 rows",
    ),
    "neither prompt nor messages": (
        "custom",
        b'{"id": 1, "text": "a"}\n',
        "line 1: it has both or neither of 'prompt'",
    ),
    "both": ("custom", b'{"prompt": "a", "messages": []}\n', "line 1: it has both or neither of 'prompt'"),
    "no user at the end": (
        "custom",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
        "line 1: its 'messages' must take turns",
    ),
    "no messages": ("custom", b'{"messages": []}\n', "line 1: its 'messages' must take turns"),
    "an unknown role": (
        "custom",
        b'{"messages": [{"role": "tool", "content": "a"}]}\n',
        "line 1: column 'messages.0.role' is wrong",
    ),
    "duplicate ids": (
        "custom",
        b'{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n',
        "line 2: id 'custom/1' appears",
    ),
    "a question twice": (
        "mt-bench",
        2 * (json.dumps(QUESTION).encode() + b"\n"),
        "line 2: id 'mt-bench/81/1' appears twice",
    ),
    "no usable prompt": ("custom", b'{"prompt": " "}\n', "no usable prompt in 1 rows"),
    "not an object": ("custom", b'"prompt"\n', "line 1: expected an object, not str"),
    "not UTF-8": ("custom", b'{"prompt": "caf\xe9"}\n', "not UTF-8 text at byte 15"),
    "a line too long": ("custom", b'{"prompt": "' + b"a" * 5000 + b'"}\n', "line 1: is longer than 4096 bytes"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_one_clear_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 4096)
    name, content, expected = MALFORMED[kind]
    file = tmp_path / "q.jsonl"
    file.write_bytes(content)
    message = error_of(name, file)
    assert str(file) in message
    assert expected in message
    assert ";" in message, "it says what to do"


def test_a_line_of_the_greatest_length_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"prompt": "a" * 80}) + "\n"
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", len(line))
    file = tmp_path / "q.jsonl"
    file.write_text(line + line.replace("aa", "ab"))
    assert len(load_suite("custom", file).prompts) == 2
