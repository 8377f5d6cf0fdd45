"""The store of results: a folder on a disk or in an object store, by path or URI. Its files are whole or absent.

On a disk a file is written under a temporary name and renamed; in an object store a put is atomic by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from entmtp.errors import EntMTPError

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")
_OBJECT_STORES = {"s3", "gcs", "abfs"}


class Store:
    """A folder of results.

    Attributes:
        uri: the folder as the user named it, a local one as an absolute path.
        local: the folder's path on this machine; None in an object store.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str, uri: str) -> None:
        self._filesystem = filesystem
        self._path = path.rstrip("/")
        self.uri = uri.rstrip("/")
        self.local = Path(path) if filesystem.type_name == "local" else None

    def __str__(self) -> str:
        return self.uri

    def at(self, name: str) -> Store:
        """The folder ``name`` inside this one."""
        return Store(self._filesystem, self._full(name), f"{self.uri}/{name}")

    def names(self) -> list[str]:
        """Sorted names of the files directly in the folder; none where it does not exist yet."""
        with self._plain_errors("list"):
            found = self._filesystem.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.File)

    def open(self, name: str) -> pa.NativeFile:
        """Open the file ``name`` for random reads.

        Raises:
            OSError: it does not exist or can't be read.
        """
        return self._filesystem.open_input_file(self._full(name))

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write the file ``name``, whole or not at all, over an older one.

        Raises:
            EntMTPError: it can't be written.
        """
        with self._plain_errors(f"write {name} in"):
            if self._filesystem.type_name in _OBJECT_STORES:
                self._put(self._full(name), data)
            else:
                self._write_renamed(name, data)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A local folder to fill. On exit its files are in this store's folder ``name``."""
        if self.local is not None:
            yield self.local / name
            return
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            inside = self.at(name)
            for path in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
                inside.write(path.relative_to(scratch).as_posix(), path.read_bytes())

    def check(self) -> None:
        """Check that the folder can be used, before hours of work.

        Raises:
            EntMTPError: it is a file, or can't be reached.
        """
        with self._plain_errors("reach"):
            kind = self._filesystem.get_file_info(self._path).type
        if kind == fs.FileType.File:
            raise EntMTPError(f"results: '{self.uri}' is a file; give a folder")

    def _write_renamed(self, name: str, data: bytes | pa.Buffer) -> None:
        folder, _, base = self._full(name).rpartition("/")
        unfinished = f"{folder}/.{base}.unfinished"
        self._filesystem.create_dir(folder, recursive=True)
        try:
            self._put(unfinished, data)
            self._filesystem.move(unfinished, f"{folder}/{base}")
        except BaseException:
            if self._filesystem.get_file_info(unfinished).type == fs.FileType.File:
                self._filesystem.delete_file(unfinished)
            raise

    def _put(self, path: str, data: bytes | pa.Buffer) -> None:
        with self._filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}"

    @contextmanager
    def _plain_errors(self, action: str) -> Iterator[None]:
        """Turn the file system's errors during ``action`` into EntMTPError."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise EntMTPError(
                f"results: can't {action} '{self.uri}' ({_first_line(error)}); check address, rights and room"
            ) from error


def open_store(address: str) -> Store:
    """Open the store at a path or URI, which need not exist yet. Credentials come from the environment.

    Raises:
        EntMTPError: an unknown scheme, a URI that is none, or a file where a folder should be.
    """
    scheme, marks, _ = address.partition("://")
    if not address.strip():
        raise EntMTPError("results: '' is empty; give a folder or a URI such as s3://BUCKET/FOLDER")
    if marks and scheme not in SCHEMES:
        raise EntMTPError(f"results: scheme '{scheme}' of '{address}' is unknown; use a path, file://, s3:// or gs://")
    store = _opened(address) if marks else _local(address)
    store.check()
    return store


def _local(address: str) -> Store:
    path = str(Path(address).expanduser().absolute())
    return Store(fs.LocalFileSystem(), path, path)


def _opened(uri: str) -> Store:
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException, ImportError) as error:
        raise EntMTPError(f"results: '{uri}' can't be opened ({_first_line(error)}); check the address") from error
    if not path.strip("/"):
        raise EntMTPError(f"results: '{uri}' names no folder; give one such as s3://BUCKET/FOLDER")
    return Store(filesystem, path, path if filesystem.type_name == "local" else uri)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
