"""Results in folders of several filesystems: files are whole or absent, and failures are reported in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from entmtp.errors import EntMTPError
from entmtp.evaluation.results.rows import finished_keys, read_metadata, read_parts, tables_of, write_part
from entmtp.evaluation.results.storage import Store, open_store
from tests.helpers.synthetic_rows import make_rows


def in_memory(tmp_path: Path) -> Store:
    """Nothing of it is on a disk: a stand-in for a filesystem elsewhere."""
    return Store(fs._MockFileSystem(), "bucket/run", "mock://bucket/run")


def part_of_a_tree(tmp_path: Path) -> Store:
    return Store(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "run", "tree://run")


def by_path(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def by_uri(tmp_path: Path) -> Store:
    return open_store((tmp_path / "run").as_uri())


@pytest.fixture(params=[by_path, by_uri, part_of_a_tree, in_memory])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    make: Callable[[Path], Store] = request.param
    return make(tmp_path)


def read(store: Store, name: str) -> bytes:
    with store.open(name) as file:
        return bytes(file.read())


def test_what_is_written_is_there_and_may_be_replaced(store: Store) -> None:
    assert store.names() == []
    store.at("deep").write("a.txt", b"one")
    store.at("deep").write("a.txt", b"two")
    store.write("deep/b.txt", b"")
    assert store.at("deep").names() == ["a.txt", "b.txt"]
    assert read(store, "deep/a.txt") == b"two"
    assert store.names() == [], "a folder is no file"


def test_parts_go_through_any_filesystem(store: Store) -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=2)
    write_part(store.at("parts"), "one", *tables_of(requests, steps), {"hardware": "x"})
    assert finished_keys(store.at("parts")) == {"one"}
    read_requests, read_steps = read_parts(store.at("parts"))
    assert (read_requests.num_rows, read_steps.num_rows) == (len(requests), len(steps))
    assert read_metadata(store.at("parts"), ["one"]) == [{"hardware": "x"}]


def test_a_filled_folder_ends_up_in_the_store(store: Store) -> None:
    with store.folder("report") as folder:
        (folder / "tables").mkdir(parents=True)
        (folder / "index.html").write_text("page")
        (folder / "tables" / "arms.csv").write_text("a,b")
    assert read(store, "report/index.html") == b"page"
    assert read(store, "report/tables/arms.csv") == b"a,b"


def test_only_folders_on_this_machines_disks_are_local(tmp_path: Path) -> None:
    assert by_path(tmp_path).local == by_uri(tmp_path).local == tmp_path / "run"
    assert part_of_a_tree(tmp_path).local is in_memory(tmp_path).local is None


class Full(fs.FileSystemHandler):
    """A disk that takes half of what is written to it; everything else is the folder's."""

    def __init__(self, below: fs.FileSystem) -> None:
        self.below = below

    def open_output_stream(self, path: str, metadata: object) -> object:
        whole = self.below.open_output_stream(path)

        class Stream:
            closed = False

            def write(self, data: bytes) -> int:
                whole.write(data[: len(data) // 2])
                raise OSError(28, "No space left on device")

            def flush(self) -> None: ...

            def writable(self) -> bool:
                return True

            def close(self) -> None:
                whole.close()

        from pyarrow import PythonFile

        return PythonFile(Stream(), mode="w")

    def get_type_name(self) -> str:
        return "full"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> object:
        return self.below.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> object:
        return self.below.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.below.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.below.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self.below.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        raise NotImplementedError

    def delete_dir(self, path: str) -> None:
        raise NotImplementedError

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def open_append_stream(self, path: str, metadata: object) -> object:
        raise NotImplementedError

    def open_input_file(self, path: str) -> object:
        return self.below.open_input_file(path)

    def open_input_stream(self, path: str) -> object:
        return self.below.open_input_stream(path)


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"older")
    full = Store(fs.PyFileSystem(Full(fs.LocalFileSystem())), str(tmp_path), "full://run")
    with pytest.raises(EntMTPError, match=r"results: can't write a.txt in 'full://run' .*No space left"):
        full.write("a.txt", b"newer and longer")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "results: '' is empty; give a folder"),
        ("ftp://host/x", "results: scheme 'ftp' of 'ftp://host/x' is unknown; use a path, file://, s3:// or gs://"),
        ("mock:///x", "results: scheme 'mock' of 'mock:///x' is unknown"),
        ("file://elsewhere/x", "results: 'file://elsewhere/x' can't be opened"),
        ("gs://", "results: 'gs://' (names no folder|can't be opened)"),
        ("{folder}/file", "results: '{folder}/file' is a file; give a folder"),
        ("file://{folder}/file", "results: '{folder}/file' is a file; give a folder"),
    ],
)
def test_an_address_that_cannot_be(address: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EntMTPError, match=said.format(folder=tmp_path)):
        open_store(address.format(folder=tmp_path))


def test_a_folder_below_a_file_is_reported_when_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EntMTPError, match=r"can't (write|reach)"):
        open_store(str(tmp_path / "file" / "run")).write("a", b"")
