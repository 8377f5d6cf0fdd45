"""SPEED-Bench, MATH-500 and MBPP, in the hub's schemas."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from entmtp.errors import EntMTPError
from entmtp.suites import Prompt, get_suite, load_suite, suite_names
from entmtp.suites.base import HubDataset
from entmtp.suites.hub import HubUnavailableError
from entmtp.suites.math500 import boxed, normalised
from entmtp.suites.speed_bench import CATEGORIES, LENGTHS

SQUARE: dict[str, Any] = {
    "task_id": 8,
    "prompt": "Write a function to square a number.",
    "code": "def helper(n):\n    return n * n\ndef square(n):\n    return helper(n)",
    "test_imports": ["import math"],
    "test_list": ["assert math.sqrt(square(3)) == 3", "assert square(-2) == 4"],
    "source_file": "x.ipynb",
}
SUM: dict[str, Any] = {
    "problem": "What is $1 + \\frac{1}{2}$?",
    "solution": "It is $\\boxed{\\frac{3}{2}}$.",
    "answer": "\\frac{3}{2}",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def question(number: int, category: str, *turns: str, **columns: Any) -> dict[str, Any]:
    return {"question_id": f"q{number}", "category": category, "sub_category": None, "turns": list(turns)} | columns


def error_of(name: str, file: Path | None) -> str:
    with pytest.raises(EntMTPError) as caught:
        load_suite(name, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- SPEED-Bench -----------------------------------------------------------------------------------------------------


def test_speed_bench_is_eleven_suites_and_three_of_each_length() -> None:
    assert len(suite_names(["speed-bench"])) == len(CATEGORIES) == 11
    assert suite_names(["speed-bench-8k"]) == [f"speed-bench-8k-{kind}-entropy" for kind in ("low", "mixed", "high")]
    by_length = {length: suite_names([f"speed-bench-{length}"])[0] for length in LENGTHS}
    hubs = [get_suite(name).hub for name in ("speed-bench-qa", *by_length.values())]
    assert hubs == [
        HubDataset("nvidia/SPEED-Bench", "test", config=config)
        for config in ("qualitative", *(f"throughput_{length}" for length in LENGTHS))
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_each_category_has_its_own_questions_with_all_their_turns(tmp_path: Path, ending: str) -> None:
    rows = [question(n, category, f"Do {n}.", f"Again {n}.") for n, category in enumerate(CATEGORIES)]
    file = write(tmp_path / f"qualitative.{ending}", rows)
    found = {name: load_suite(name, file).prompts for name in suite_names(["speed-bench"])}
    assert {name: [prompt.id for prompt in prompts] for name, prompts in found.items()} == {
        f"speed-bench-{category}": [f"speed-bench/q{n}/1", f"speed-bench/q{n}/2"]
        for n, category in enumerate(CATEGORIES)
    }
    second = found["speed-bench-math"][1]
    assert (second.text, second.history, second.key) == ("Again 1.", (("user", "Do 1."),), "Do 1.")


def test_entropy_classes_are_suites_of_their_length(tmp_path: Path) -> None:
    rows = [question(n, category, f"Do {n}.") for n, category in enumerate(["high_entropy", "mixed", "low_entropy"])]
    file = write(tmp_path / "throughput_2k.jsonl", rows)
    found = {
        name: [prompt.text for prompt in load_suite(name, file).prompts] for name in suite_names(["speed-bench-2k"])
    }
    assert found == {
        "speed-bench-2k-low-entropy": ["Do 2."],
        "speed-bench-2k-mixed-entropy": ["Do 1."],
        "speed-bench-2k-high-entropy": ["Do 0."],
    }


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_files_that_nvidias_script_writes_have_messages(tmp_path: Path, ending: str) -> None:
    row = question(1, "rag") | {"messages": [{"role": "user", "content": text} for text in ("One?", "Two?")]}
    del row["turns"]
    prompts = load_suite("speed-bench-rag", write(tmp_path / f"q.{ending}", [row])).prompts
    assert [prompt.text for prompt in prompts] == ["One?", "Two?"]


def test_placeholders_are_refused_in_the_suite_of_their_category(tmp_path: Path) -> None:
    placeholder = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH\n\nSummarize {article}"
    file = write(tmp_path / "q.jsonl", [question(1, "coding", "Write."), question(2, "summarization", placeholder)])
    assert len(load_suite("speed-bench-coding", file).prompts) == 1
    message = error_of("speed-bench-summarization", file)
    assert "question q2 is a placeholder" in message
    assert "prepare.py" in message
    assert "--data speed-bench=qualitative.jsonl" in message


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("speed-bench-qa", question(1, "low_entropy", "a"), "its 'category' is 'low_entropy', none of coding, math, "),
        ("speed-bench-1k-low-entropy", question(1, "qa", "a"), "'qa', none of low_entropy, mixed, high_entropy"),
        ("speed-bench-qa", {"question_id": 1, "category": "qa"}, "neither 'turns' nor 'messages'"),
        ("speed-bench-qa", question(1, "qa"), "column 'turns' is wrong"),
        ("speed-bench-qa", question(1, "qa", " "), "column 'turns.0' is wrong"),
        (
            "speed-bench-qa",
            {"question_id": 1, "category": "qa", "messages": [{"role": "assistant", "content": "a"}]},
            "column 'messages.0.role' is wrong",
        ),
    ],
)
def test_files_that_are_not_speed_bench(tmp_path: Path, name: str, row: dict[str, Any], expected: str) -> None:
    message = error_of(name, write(tmp_path / "q.jsonl", [row]))
    assert expected in message
    assert "q.jsonl, line 1: " in message


@pytest.mark.parametrize("name", ["speed-bench-qa", "speed-bench-32k-mixed-entropy", "math500", "mbpp"])
def test_without_the_hub_the_file_to_give_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(dataset: HubDataset, columns: frozenset[str]) -> Any:
        raise HubUnavailableError(f"{dataset}: no answer")

    monkeypatch.setattr(importlib.import_module("entmtp.suites.load"), "hub_rows", nowhere)
    suite = get_suite(name)
    assert error_of(name, None) == (
        f"suite {name} finds no prompts ({suite.hub}: no answer): its file must be given (for a benchmark by"
        f" --data {suite.family}=FILE): {suite.file}"
    )


# --- MATH-500 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_problems_ask_for_a_box_and_are_scored_by_what_is_in_it(tmp_path: Path, ending: str) -> None:
    (prompt,) = load_suite("math500", write(tmp_path / f"m.{ending}", [SUM])).prompts
    assert prompt.text.startswith("What is $1 + \\frac{1}{2}$?\n\n")
    assert prompt.text.endswith("within \\boxed{}.")
    assert prompt.reference == {"answer": "\\frac{3}{2}", "subject": "Prealgebra", "level": "1"}
    suite = get_suite("math500")
    for text, score in {
        "So \\boxed{2}, no: it is $\\boxed{\\dfrac32}$.": 1.0,
        "\\boxed{3/2}": 1.0,
        "\\boxed{\\frac{3}{2}} and not \\boxed{1}": 0.0,
        "\\frac{3}{2}": 0.0,
        "\\boxed{\\frac{3}{2}": 0.0,
        "": 0.0,
    }.items():
        assert suite.score(prompt, text) == score, text


def test_the_last_complete_box_counts() -> None:
    assert boxed("a \\boxed{1} b \\boxed{\\frac{1}{\\sqrt{2}}} c") == "\\frac{1}{\\sqrt{2}}"
    assert boxed("\\boxed{\\left\\{1, 2\\right\\}}") == "\\left\\{1, 2\\right\\}"
    assert boxed("\\fbox{7}") == "7"
    assert boxed("$\\boxed 7$") == "7"
    assert boxed("\\boxed{1} then \\boxed{2") == "1"
    assert boxed("the answer is 7") is None


@pytest.mark.parametrize(
    "same",
    [
        ["\\frac{1}{2}", "\\dfrac12", "\\tfrac{1}2", "\\frac1{2}", "1/2", " $\\frac{1}{2}$. "],
        ["-\\frac{7}{3}", "-7/3"],
        ["\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"],
        ["10,080", "10080", "10,\\!080"],
        ["90^\\circ", "90^{\\circ}", "90"],
        ["\\$18.90", "18.90"],
        ["25\\%", "25"],
        ["864 \\mbox{ inches}^2", "864"],
        ["5.4 \\text{ cents}", "5.4"],
        ["\\text{Evelyn}", "Evelyn"],
        ["\\text{(C)}", "(C)"],
        ["x = 5", "5"],
        ["x \\in [-2,7]", "[-2,7]"],
        [".5", "0.5"],
        ["3\\sqrt{13}", "3 \\sqrt{13}"],
        ["\\sqrt5", "\\sqrt{5}"],
        ["\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"],
    ],
)
def test_two_ways_to_write_an_answer_are_one(same: list[str]) -> None:
    assert len({normalised(text) for text in same}) == 1, [normalised(text) for text in same]


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "2"), ("-1", "1"), ("1,2", "12"), ("\\frac{1}{2}", "\\frac{2}{1}"), ("x^2", "x2"), ("a", "A")],
)
def test_different_answers_stay_different(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"answer": " $ "}, "column 'answer' is wrong: Value error, it is blank"), ({"problem": ""}, "column 'problem'")],
)
def test_files_that_are_not_math500(tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    assert expected in error_of("math500", write(tmp_path / "m.jsonl", [SUM | changes]))


# --- MBPP ------------------------------------------------------------------------------------------------------------


def mbpp(path: Path, row: dict[str, Any]) -> Prompt:
    (prompt,) = load_suite("mbpp", write(path, [row])).prompts
    return prompt


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_tasks_come_with_their_tests_and_are_scored_by_them(tmp_path: Path, ending: str) -> None:
    prompt = mbpp(tmp_path / f"m.{ending}", SQUARE)
    assert prompt.id == "mbpp/8"
    assert SQUARE["prompt"] in prompt.text
    assert "```python\nassert math.sqrt(square(3)) == 3\nassert square(-2) == 4\n```" in prompt.text
    assert (prompt.key, prompt.reference["entry_point"]) == (SQUARE["prompt"], "square")
    suite = get_suite("mbpp")
    answer = "Here:\n```python\ndef square(n):\n    return n {}\n```\nIt works."
    assert suite.score(prompt, answer.format("* n")) == 1.0
    assert suite.score(prompt, answer.format("+ 7")) == 0.0
    assert suite.score(prompt, "def square(n):\n    return n * n") == 1.0
    assert suite.score(prompt, "def cube(n):\n    return n * n") == 0.0
    assert suite.score(prompt, "I can't.") == 0.0


def test_the_full_set_has_other_columns_and_tests_that_need_a_setting(tmp_path: Path) -> None:
    row = {
        "task_id": 56,
        "text": "Write a function to check a number.",
        "code": "def check(n):\r\n    return n > 0",
        "test_setup_code": "least = 1",
        "test_list": ["assert check(least) == True"],
        "challenge_test_list": [],
    }
    prompt = mbpp(tmp_path / "mbpp.jsonl", row)
    # The function is called as HumanEval's own check is.
    assert get_suite("mbpp").score(prompt, "def check(n):\n    return n > 0") == 1.0
    assert get_suite("mbpp").score(prompt, "def check(n):\n    return n > 1") == 0.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": None}, "it has no 'prompt' (or 'text')"),
        ({"test_list": []}, "column 'test_list' is wrong"),
        (
            {"code": "def cube(n):\n    return n"},
            "its 'code' defines no function that the first of its 'test_list' calls",
        ),
        ({"task_id": "8"}, "column 'task_id' is wrong"),
    ],
)
def test_files_that_are_not_mbpp(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in error_of("mbpp", write(tmp_path / "m.jsonl", [SQUARE | changes]))
