"""Files are whole or absent, and a folder that can't be made is told in one line."""

from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from entmtp.files import make_folder, write_whole


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    path.write_text("older")

    def broken(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_whole(path, broken)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_folder_that_is_a_file_is_refused_by_its_option(below: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(EntMTPError, match=r"^results: '.*' can't be made a folder .*; give another$"):
        make_folder("results", path / below)


def test_a_folder_is_made_with_all_above_it(tmp_path: Path) -> None:
    assert make_folder("results", tmp_path / "a" / "b").is_dir()
    assert make_folder("results", tmp_path / "a").is_dir()
