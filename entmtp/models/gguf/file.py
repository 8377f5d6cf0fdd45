"""GGUF files: header, metadata and a table of tensors, every length of which is checked before it is used.

The format is that of ggml's specification (``docs/gguf.md`` in ggml), versions 2 and 3, little-endian. The file is
mapped into memory, and the tensors stay there.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from entmtp.errors import EntMTPError, quoted
from entmtp.models.kernels.block_formats import GGML_QUANT_SIZES, GGMLQuantizationType

Value: TypeAlias = "int | float | bool | str | list[Value]"

_MAGIC = b"GGUF"
_VERSIONS = 2, 3
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_DIMENSION = 2**40
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    number: struct.Struct(f"<{letter}")
    for number, letter in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
"""GGUF's number of a type of metadata, and how such a value is stored."""


class _Malformed(Exception):
    """A file that is no GGUF file, or damaged; the message says how."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file, in the blocks in which it lies there.

    Attributes:
        shape: of the tensor in PyTorch's order; a weight is ``(out, in)``.
        format: name of ggml's type, such as 'Q4_1'.
        rows: bytes ``[rows, bytes per row]``, mapped from the file.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    rows: np.ndarray


@dataclass(frozen=True)
class GgufFile:
    """A file's metadata by key and its tensors by name."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]
    mapping: mmap.mmap | None = None

    def release(self) -> None:
        """Give back the memory of what was read; what is read again comes from the file again."""
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self.mapping.madvise(mmap.MADV_DONTNEED)


def read_gguf(path: Path) -> GgufFile:
    """Map a GGUF file.

    Raises:
        EntMTPError: if the file can't be read, is not a GGUF file, or is damaged; the message says where.
    """
    try:
        if path.stat().st_size == 0:
            raise _Malformed("it is empty")
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise EntMTPError(f"model '{path}': cannot be read: {error.strerror or error}; check the path") from error
    except _Malformed as error:
        raise _damaged(path, error) from error
    try:
        return _read(path, mapping)
    except _Malformed as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: _Malformed) -> EntMTPError:
    return EntMTPError(f"model '{path}': is not a GGUF file that can be read: {error}; download it again")


def _read(path: Path, mapping: mmap.mmap) -> GgufFile:
    data = np.frombuffer(mapping, dtype=np.uint8)
    reader = _Reader(data)
    if reader.take(4, "the magic bytes") != _MAGIC:
        raise _Malformed("it does not begin with 'GGUF'")
    version = reader.number(4)
    if version not in _VERSIONS:
        raise _Malformed(f"its version is {version}; versions 2 and 3 in little-endian order are known")
    tensors, entries = reader.count("tensors", smallest=24), reader.count("metadata entries", smallest=13)
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = reader.string()
        if key in metadata:
            raise _Malformed(f"it has {quoted(key)} twice")
        metadata[key] = reader.value(key)
    infos = [_info(reader) for _ in range(tensors)]
    alignment = metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Malformed(f"{_ALIGNMENT} is {quoted(alignment)}, not a power of two")
    begin = -(-reader.position // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for info in infos:
        if info.name in found:
            raise _Malformed(f"it has the tensor {quoted(info.name)} twice")
        found[info.name] = _tensor(info, data, begin, alignment)
    return GgufFile(path, metadata, found, mapping)


@dataclass(frozen=True)
class _Info:
    """Entry of a tensor, with the dimensions in ggml's order: the fastest first."""

    name: str
    dimensions: tuple[int, ...]
    type: int
    offset: int


def _info(reader: _Reader) -> _Info:
    name = reader.string()
    count = int(reader.number(4))
    if not 1 <= count <= _MAX_DIMENSIONS:
        raise _Malformed(f"tensor {quoted(name)} has {count} dimensions; 1 to {_MAX_DIMENSIONS} are known")
    dimensions = tuple(int(reader.number(10)) for _ in range(count))
    if not all(1 <= each <= _MAX_DIMENSION for each in dimensions):
        raise _Malformed(f"tensor {quoted(name)} has the dimensions {quoted(dimensions)}")
    return _Info(name, dimensions, int(reader.number(4)), int(reader.number(10)))


def _tensor(info: _Info, data: np.ndarray, begin: int, alignment: int) -> GgufTensor:
    try:
        kind = GGMLQuantizationType(info.type)
    except ValueError:
        raise _Malformed(f"tensor {quoted(info.name)} has the unknown type {info.type}") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    width, rows = info.dimensions[0], math.prod(info.dimensions[1:])
    if width % block:
        raise _Malformed(f"tensor {quoted(info.name)} has rows of {width}, which are no whole blocks of {block}")
    if info.offset % alignment:
        raise _Malformed(f"tensor {quoted(info.name)} lies at {info.offset}, which is no multiple of {alignment}")
    row_bytes = width // block * block_bytes
    first, last = begin + info.offset, begin + info.offset + rows * row_bytes
    if last > len(data):
        raise _Malformed(
            f"tensor {quoted(info.name)} ends at byte {last}, but the file has {len(data)}: it was cut off"
        )
    return GgufTensor(info.name, tuple(reversed(info.dimensions)), kind.name, data[first:last].reshape(rows, row_bytes))


class _Reader:
    """Values of a file one after the other; none reaches past its end.

    Attributes:
        position: byte of the next value.
    """

    def __init__(self, data: np.ndarray) -> None:
        self._data = data.data
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes, which are ``what``."""
        if count > len(self._data) - self.position:
            raise _Malformed(f"it ends inside {what}, at byte {len(self._data)}")
        self.position += count
        return bytes(self._data[self.position - count : self.position])

    def number(self, kind: int) -> int | float | bool:
        """The next number, of one of the types of :data:`_NUMBERS`."""
        layout = _NUMBERS[kind]
        value: int | float | bool = layout.unpack(self.take(layout.size, "a number"))[0]
        return value

    def count(self, of: str, smallest: int) -> int:
        """A number ``of`` things that take at least ``smallest`` bytes each."""
        count = int(self.number(10))
        if count * smallest > len(self._data) - self.position:
            raise _Malformed(f"it announces {count} {of}, more than fit in its {len(self._data)} bytes")
        return count

    def string(self) -> str:
        """The next string."""
        try:
            return self.take(self.count("bytes of text", smallest=1), "a text").decode()
        except UnicodeDecodeError:
            raise _Malformed(f"the text before byte {self.position} is not UTF-8") from None

    def value(self, key: str) -> Value:
        """The metadata value of ``key``, after its type."""
        kind = int(self.number(4))
        if kind != _ARRAY:
            return self._item(key, kind)()
        kind = int(self.number(4))
        item = self._item(key, kind)
        smallest = _NUMBERS[kind].size if kind in _NUMBERS else 8
        return [item() for _ in range(self.count(f"items of {key}", smallest))]

    def _item(self, key: str, kind: int) -> Callable[[], Value]:
        if kind == _STRING:
            return self.string
        if kind not in _NUMBERS:
            raise _Malformed(f"{quoted(key)} has the unknown type {kind}")
        return partial(self.number, kind)
