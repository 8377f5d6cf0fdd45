"""Every reader of users' files takes what editors and other programs write: odd characters, byte order marks, CRLF."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.http.auth import load_keys
from entmtp import json_lines
from entmtp.errors import EntMTPError
from entmtp.json_lines import MAX_FILE_BYTES, read_json_lines, read_text
from entmtp.policies.hardware_profile import known_profiles, load_profile
from entmtp.suites import gsm8k, load_suite
from entmtp.suites.hub import HubUnavailableError
from entmtp.training.prompts import chat_prompts
from entmtp.training.prompts_command import write_training_prompts
from entmtp.training.train_heads import read_prompts
from entmtp.trees.bank import load_bank
from tests.helpers.small_cases import small_bank

ODD = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven"
"""All that ends a line for `str.splitlines`, but for the two that JSON writes as escapes."""

BOM = b"\xef\xbb\xbf"


def written(path: Path, rows: list[dict[str, object]], start: bytes = BOM, end: str = "\r\n") -> Path:
    """Rows as JSON lines whose texts are not escaped, but for the control characters that JSON forbids."""
    path.write_bytes(start + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    return path


def training(folder: Path) -> list[str]:
    return read_prompts(written(folder / "prompts.jsonl", [{"prompt": ODD}, {"prompt": "b"}]))


def suite_file(folder: Path) -> list[str]:
    rows: list[dict[str, object]] = [{"prompt": ODD}, {"prompt": "b"}]
    return [prompt.text for prompt in load_suite("custom", written(folder / "custom.jsonl", rows)).prompts]


def json_file_of_lines(folder: Path) -> list[str]:
    rows: list[dict[str, object]] = [{"prompt": ODD}, {"prompt": "b"}]
    return [prompt.text for prompt in load_suite("custom", written(folder / "custom.json", rows)).prompts]


def json_list(folder: Path) -> list[str]:
    path = folder / "custom.json"
    path.write_bytes(BOM + json.dumps([{"prompt": ODD}, {"prompt": "b"}], ensure_ascii=False).encode())
    return [prompt.text for prompt in load_suite("custom", path).prompts]


def sharegpt(folder: Path) -> list[str]:
    rows: list[dict[str, object]] = [{"conversations": [{"from": "human", "value": text}]} for text in (ODD, "b" * 8)]
    return [text.replace("b" * 8, "b") for text in chat_prompts(written(folder / "sharegpt.json", rows))]


@pytest.mark.parametrize("read", [training, suite_file, json_file_of_lines, json_list, sharegpt])
def test_no_text_is_cut_and_a_byte_order_mark_is_no_text(read: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert read(tmp_path) == [ODD, "b"]


def test_samples_and_worked_examples_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, object]] = [{"conversations": [{"from": "human", "value": ODD}]}]
    suite_load = importlib.import_module("entmtp.suites.load")  # its package has a function of that name
    monkeypatch.setattr(suite_load, "SAMPLES", written(tmp_path / "sharegpt.jsonl", rows).parent)
    monkeypatch.setattr(suite_load, "hub_rows", no_hub)
    assert [prompt.text for prompt in load_suite("sharegpt").prompts] == [ODD]
    shots = written(tmp_path / "shots.jsonl", [{"question": ODD, "answer": "#### 1"}])
    monkeypatch.setattr(gsm8k, "_EXAMPLES", shots)
    assert ODD in gsm8k._shots.__wrapped__(1)


def no_hub(*arguments: object) -> None:
    raise HubUnavailableError("none here")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.booleans(), st.booleans())
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], mark: bool, crlf: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    written(path, [{"text": text} for text in texts], BOM if mark else b"", "\r\n" if crlf else "\n")
    assert [row["text"] for _, row in read_json_lines(path)] == texts


def test_blank_lines_are_counted_and_a_lone_carriage_return_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n  \n{"a":\r1}\n\r\n[2]')
    assert list(read_json_lines(path)) == [(f"{path}, line 3", {"a": 1}), (f"{path}, line 5", [2])]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"a":', "line 2: broken JSON ("),
        (b'{"a": 1}\n{"a": "caf\xe9"}', "line 2: not UTF-8 text at byte 10; save the file as UTF-8"),
        (b'\xff\xfe{\x00"\x00', "line 1: not UTF-8 text at byte 0"),
        (b'[1]\n"' + b"a" * 64 + b'"\n', "line 2: is longer than 64 bytes; put one row on each line"),
    ],
)
def test_an_error_names_file_line_and_what_is_wrong(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    for field, begin in (("", str(path)), ("prompts:", f"prompts: {path}")):
        with pytest.raises(EntMTPError) as refused:
            list(read_json_lines(path, field))
        assert str(refused.value).startswith(f"{begin}, {said}")


def test_an_error_of_a_whole_file_names_its_field(tmp_path: Path) -> None:
    latin, absent = tmp_path / "latin.json", tmp_path / "absent.json"
    latin.write_bytes(b"caf\xe9")
    for path, said in ((latin, "not UTF-8 text at byte 3"), (absent, "cannot be read (No such file")):
        with pytest.raises(EntMTPError) as refused:
            chat_prompts(path)
        assert str(refused.value).startswith(f"sharegpt: {path}: {said}")


@pytest.mark.parametrize("read", [read_prompts, read_text, chat_prompts])
def test_a_file_that_is_too_big_is_refused_unread(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(EntMTPError, match=r"big\.jsonl holds 2\.0 GiB, more than the 2 GiB allowed"):
        read(path)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"conversations": "hi"}, "record 2: 'conversations' is no list of objects; mend the record"),
        ({"conversations": ["hi"]}, "record 2: 'conversations' is no list of objects"),
        ({"conversations": [{"from": "human", "value": 3}]}, "record 2: the 'value' of its first human turn is not"),
    ],
)
def test_a_conversation_that_is_none_is_named(record: dict[str, object], said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "sharegpt.json", [{"conversations": []}, record])
    with pytest.raises(EntMTPError) as refused:
        chat_prompts(path)
    assert str(refused.value).startswith(f"sharegpt: {path}, {said}")


def test_a_sharegpt_file_that_is_nowhere_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match=r"sharegpt: .*x\.json does not exist; give the path of a ShareGPT JSON file"):
        write_training_prompts(tmp_path / "x.json", tmp_path / "out.jsonl", [])


def bank_with_a_mark(path: Path) -> object:
    path.write_bytes(BOM + small_bank().model_dump_json().encode())
    return load_bank(path) == small_bank()


def profile_with_a_mark(path: Path) -> object:
    path.write_bytes(BOM + (files("entmtp") / "assets" / "hardware" / f"{known_profiles()[0]}.json").read_bytes())
    return load_profile(str(path)) == load_profile(known_profiles()[0])


def keys_with_a_mark(path: Path) -> object:
    path.write_bytes(BOM + f"alice:{'0' * 64}\r\n".encode())
    return load_keys(path)


@pytest.mark.parametrize("read", [bank_with_a_mark, profile_with_a_mark, keys_with_a_mark])
def test_other_files_that_users_edit_may_begin_with_a_byte_order_mark(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    assert read(tmp_path / "mine.json")
