"""The commit that numbers are of."""

from pathlib import Path

import pytest

from entmtp.provenance import COMMIT_VARIABLE, checkout_commit, git_commit
from tests.helpers.git_repository import commit_all


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, as the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    for name in ("entmtp/code.py", "docs/page.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("one\n")
    commit_all(tmp_path)
    return tmp_path


def test_a_commit_is_marked_where_code_differs_and_not_where_pages_do(checkout: Path) -> None:
    commit = checkout_commit()
    assert commit is not None
    assert len(commit) == 40
    (checkout / "docs/page.md").write_text("two\n")
    assert checkout_commit() == commit
    (checkout / "entmtp/code.py").write_text("two\n")
    assert checkout_commit() == f"{commit}+"


def test_an_uploaded_copy_has_the_commit_of_its_origin(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "abc+")
    assert git_commit.__wrapped__() == "abc+"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout_commit() is None
