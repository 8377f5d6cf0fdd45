"""Damaged GGUF files: one clear error for each, and never a read outside of the file."""

import contextlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.models.gguf.file import read_gguf
from tests.helpers.gguf_files import write_model

HEADER = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("gguf") / "whole.gguf", "llama", "Q4_0").read_bytes()


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def tensor(name: bytes, dimensions: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = b"".join(struct.pack("<Q", each) for each in dimensions)
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack("<I", len(dimensions))
        + dims
        + struct.pack("<IQ", kind, offset)
    )


def made(entries: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: int = 64, version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    body = header + b"".join(entries) + b"".join(tensors)
    return body + bytes(-len(body) % 32 + data)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "three bytes": (b"GGU", "it ends inside the magic bytes"),
    "another magic": (b"GGJT" + bytes(60), "does not begin with 'GGUF'"),
    "zeros": (bytes(100), "does not begin with 'GGUF'"),
    "version 1": (made(version=1), "its version is 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(32), "in little-endian order"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "it ends inside a number"),
    "absurd tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "announces 1152921504606846976 tensors"),
    "absurd entries": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "announces 9223372036854775808 metadata entries"),
    "absurd key": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(40),
        "announces 4611686018427387904 bytes of",
    ),
    "absurd text": (made([entry(b"k", 8, struct.pack("<Q", 2**40))]), "announces 1099511627776 bytes of text"),
    "absurd list": (made([entry(b"k", 9, struct.pack("<IQ", 4, 2**50))]), "items of k, more than fit"),
    "list of lists": (made([entry(b"k", 9, struct.pack("<IQ", 9, 1))]), "'k' has the unknown type 9"),
    "unknown kind of value": (made([entry(b"k", 77, bytes(8))]), "'k' has the unknown type 77"),
    "unknown kind of items": (made([entry(b"k", 9, struct.pack("<IQ", 77, 1))]), "'k' has the unknown type 77"),
    "no utf-8": (made([entry(b"\xff\xfe", 4, bytes(4))]), "is not UTF-8"),
    "twice the same key": (made([entry(b"k", 4, bytes(4))] * 2), "it has 'k' twice"),
    "alignment 0": (made([entry(b"general.alignment", 4, bytes(4))]), "general.alignment is 0"),
    "alignment 48": (made([entry(b"general.alignment", 4, struct.pack("<I", 48))]), "general.alignment is 48"),
    "alignment of text": (
        made([entry(b"general.alignment", 8, struct.pack("<Q", 1) + b"x")]),
        "general.alignment is 'x'",
    ),
    "no dimensions": (made(tensors=[tensor(b"t", (), 0, 0)]), "'t' has 0 dimensions"),
    "nine dimensions": (made(tensors=[tensor(b"t", (1,) * 9, 0, 0)]), "'t' has 9 dimensions"),
    "dimension 0": (made(tensors=[tensor(b"t", (0, 4), 0, 0)]), "'t' has the dimensions (0, 4)"),
    "absurd dimension": (made(tensors=[tensor(b"t", (2**62, 4), 0, 0)]), "'t' has the dimensions"),
    "unknown type": (made(tensors=[tensor(b"t", (32,), 99, 0)]), "'t' has the unknown type 99"),
    "part of a block": (made(tensors=[tensor(b"t", (33, 2), 2, 0)]), "no whole blocks of 32"),
    "part of a large block": (made(tensors=[tensor(b"t", (32, 2), 12, 0)]), "no whole blocks of 256"),
    "unaligned": (made(tensors=[tensor(b"t", (4,), 0, 8)]), "lies at 8, which is no multiple of 32"),
    "behind the end": (made(tensors=[tensor(b"t", (4,), 0, 2**40)]), "but the file has"),
    "larger than the file": (made(tensors=[tensor(b"t", (1024, 1024), 0, 0)]), "it was cut off"),
    "product beyond 64 bits": (made(tensors=[tensor(b"t", (2**39, 2**39, 2**39), 0, 0)]), "but the file has"),
    "twice the same tensor": (made(tensors=[tensor(b"t", (4,), 0, 0)] * 2), "the tensor 't' twice"),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_a_damaged_file_is_one_line_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(EntMTPError) as raised:
        read_gguf(path)
    assert "\n" not in str(raised.value)
    assert f"model '{path}': is not a GGUF file that can be read: " in str(raised.value)
    assert message in str(raised.value)


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(EntMTPError, match=r"cannot be read: .*; check the path"):
            read_gguf(path)


@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(
    data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])
    with pytest.raises(EntMTPError):
        read_gguf(path)


@given(flips=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_read_or_refused(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(whole)
    for place, value in flips:
        content[place] = value
    path = tmp_path_factory.mktemp("flipped") / "flipped.gguf"
    path.write_bytes(content)
    with contextlib.suppress(EntMTPError):
        read_gguf(path)


def test_what_is_read_is_what_the_package_reads(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    path.write_bytes(whole)
    found, expected = read_gguf(path), GGUFReader(path)
    assert set(found.tensors) == {each.name for each in expected.tensors}
    for each in expected.tensors:
        mine = found.tensors[each.name]
        assert mine.format == each.tensor_type.name
        assert mine.shape == tuple(reversed(each.shape.tolist()))
        assert np.array_equal(mine.rows.reshape(-1), each.data.view(np.uint8).reshape(-1))
    keys = {name for name in expected.fields if not name.startswith("GGUF.")}
    assert set(found.metadata) == keys
    assert {key: found.metadata[key] for key in keys} == {key: expected.fields[key].contents() for key in keys}


def test_released_memory_is_read_again_from_the_file(tmp_path: Path) -> None:
    path, size = tmp_path / "large.gguf", 64 << 20
    path.write_bytes(made(tensors=[tensor(b"w", (size // 4,), 0, 0)], data=0) + bytes(64) + b"\x07" * size)
    file = read_gguf(path)
    rows, before = file.tensors["w"].rows, psutil.Process().memory_info().rss
    total = int(rows.sum(dtype=np.int64))
    assert psutil.Process().memory_info().rss > before + size // 2
    file.release()
    assert psutil.Process().memory_info().rss < before + size // 2
    assert int(rows.sum(dtype=np.int64)) == total > 0
