"""The list of training prompts next to the heads' weights."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.heads import training_prompts
from entmtp.heads.training_prompts import FILE_NAME, read_training_prompt_hashes, write_training_prompt_hashes
from entmtp.methods import NATIVE
from entmtp.prompt_hash import DIGITS, prompt_hash


@given(st.lists(st.text(max_size=20), max_size=5))
def test_what_was_written_is_read_and_case_and_space_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("heads")
    write_training_prompt_hashes(folder, [prompt_hash(text) for text in [*texts, *texts]])
    assert read_training_prompt_hashes(folder) == frozenset(prompt_hash(f"  {text}\n ") for text in texts)
    assert len((folder / FILE_NAME).read_text().splitlines()) == len(read_training_prompt_hashes(folder) or ())


def test_a_hash_is_the_beginning_of_the_texts_sha_256() -> None:
    assert prompt_hash(" Hello \n WORLD") == "b94d27b9934d3e08"  # sha256 of "hello world"
    assert len(prompt_hash("")) == DIGITS
    assert prompt_hash("hello world!") != prompt_hash("hello world")


def test_heads_without_a_list_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, patterns: object) -> Path:
        raise EntMTPError("heads: no hub")

    assert read_training_prompt_hashes(tmp_path) is None
    assert read_training_prompt_hashes(NATIVE) is None
    monkeypatch.setattr(training_prompts, "download", unreachable)
    assert read_training_prompt_hashes("someone/heads") is None
    write_training_prompt_hashes(tmp_path, [prompt_hash("Hello")])
    monkeypatch.setattr(training_prompts, "download", lambda name, patterns: tmp_path)
    assert read_training_prompt_hashes("someone/heads") == frozenset([prompt_hash("Hello")])


@pytest.mark.parametrize("content", ["0123", "0123456789abcdeg\n", "0123456789ABCDEF\n", "\xff" * DIGITS])
def test_a_broken_list_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(f"{prompt_hash('Hello')}\n{content}", encoding="latin-1")
    with pytest.raises(EntMTPError, match=rf"{FILE_NAME} holds .*not 16 hexadecimal digits; train the heads again"):
        read_training_prompt_hashes(tmp_path)


def test_a_list_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_prompts, "MAX_PROMPTS", 1)
    write_training_prompt_hashes(tmp_path, map(prompt_hash, "ab"))
    with pytest.raises(EntMTPError, match="names more than 1 prompts"):
        read_training_prompt_hashes(tmp_path)
