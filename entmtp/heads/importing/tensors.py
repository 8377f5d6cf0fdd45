"""Tensors from untrusted files. No code in them is run, and each tensor is checked when it is taken."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from entmtp.errors import EntMTPError, quoted
from entmtp.heads.importing.source import read_json_object

MAX_BYTES = 32 * 2**30
"""Limit on a checkpoint's size; five heads of a 70B model with 128,000 tokens have 10 GiB in 16 bits."""
MAX_TENSORS = 4096

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_TOKEN_TYPES = (torch.int32, torch.int64)
_PREFIXES = "medusa_heads.", "medusa_head.", "model."
_SHOWN, _NAME = 4, 80


class Tensors:
    """Tensors of a checkpoint by name, each to be taken once. Prefixes of wrapper models are removed.

    Every method raises EntMTPError if a tensor is missing or not as requested.
    """

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self._path = path
        self._remaining = {_without_prefix(name): tensor for name, tensor in tensors.items()}
        if len(self._remaining) != len(tensors):
            raise self.error("some tensors are there with and without a prefix")

    def __iter__(self) -> Iterator[str]:
        return iter(self._remaining)

    def __contains__(self, name: object) -> bool:
        return name in self._remaining

    def error(self, reason: str) -> EntMTPError:
        """Makes the error for a file that is not usable for this reason."""
        return EntMTPError(f"heads: {self._path}: {reason}; give an unchanged checkpoint of a published layout")

    def size(self, name: str, dimension: int) -> int:
        """Size of a matrix along a dimension."""
        tensor = self._named(name)
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise self.error(f"tensor '{name}' has shape {list(tensor.shape)}, not that of a matrix")
        return tensor.shape[dimension]

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Takes a floating-point tensor of this shape, whose values must be finite."""
        tensor = self._take_any(name, *shape)
        if tensor.dtype not in _FLOATS:
            raise self.error(f"tensor '{name}' is of type {tensor.dtype}, not float32, bfloat16 or float16")
        if not torch.isfinite(tensor).all():
            raise self.error(f"tensor '{name}' has values that are not finite")
        return tensor

    def take_tokens(self, name: str, count: int, vocab_size: int) -> torch.Tensor:
        """Takes distinct token ids ``[count]`` below ``vocab_size``."""
        tensor = self._take_any(name, count)
        if tensor.dtype not in _TOKEN_TYPES:
            raise self.error(f"tensor '{name}' is of type {tensor.dtype}, not int32 or int64")
        if not 0 <= int(tensor.min()) <= int(tensor.max()) < vocab_size or len(tensor.unique()) != count:
            raise self.error(f"tensor '{name}' holds tokens twice, or outside the vocabulary of {vocab_size}")
        return tensor.to(torch.int32)

    def take_offsets(self, name: str, count: int) -> torch.Tensor:
        """Takes whole numbers ``[count]``, as int64."""
        tensor = self._take_any(name, count)
        if tensor.dtype not in _TOKEN_TYPES:
            raise self.error(f"tensor '{name}' is of type {tensor.dtype}, not int32 or int64")
        return tensor.long()

    def take_mask(self, name: str, count: int) -> torch.Tensor:
        """Takes truth values ``[count]``."""
        tensor = self._take_any(name, count)
        if tensor.dtype != torch.bool:
            raise self.error(f"tensor '{name}' is of type {tensor.dtype}, not bool")
        return tensor

    def check_all_taken(self) -> None:
        """Raises EntMTPError if tensors remain that do not belong to the heads."""
        if self._remaining:
            raise self.error(f"{preview_names(self._remaining)} should not be there")

    def _named(self, name: str) -> torch.Tensor:
        if name not in self._remaining:
            raise self.error(f"tensor '{name}' is missing")
        return self._remaining[name]

    def _take_any(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._named(name)
        if tensor.shape != shape:
            raise self.error(f"tensor '{name}' has shape {list(tensor.shape)} instead of {list(shape)}")
        # A stride of 0 could make billions of values from a few bytes.
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise self.error(f"tensor '{name}' is not stored as plain numbers")
        return self._remaining.pop(name)


def read_tensors(path: Path) -> Tensors:
    """Reads a ``.safetensors`` file, or a dictionary of tensors that ``torch.save`` wrote, or all files of an index.

    Raises:
        EntMTPError: if a file is too large, damaged, or contains anything else.
    """
    parts = _parts(path) if path.suffix == ".json" else [path]
    if (size := sum(part.stat().st_size for part in parts)) > MAX_BYTES:
        raise EntMTPError(
            f"heads: {path} has {size / 2**30:.0f} GiB, more than the {MAX_BYTES // 2**30} that heads may have;"
            " give a checkpoint of heads alone"
        )
    tensors: dict[str, torch.Tensor] = {}
    for part in parts:
        found = _tensors_of(part)
        if twice := found.keys() & tensors.keys():
            raise EntMTPError(f"heads: {path}: {preview_names(twice)} are in two of its files; download it again")
        tensors |= found
    return Tensors(path, tensors)


def _parts(index: Path) -> list[Path]:
    """The files that an index names, which must lie next to it."""
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise EntMTPError(f"heads: {index}: weight_map is {quoted(names)}, not files by tensor; download it again")
    files = sorted({*names.values()})
    for name in files:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise EntMTPError(f"heads: {index} names {quoted(name)}, which is no file next to it; download it again")
    return [index.parent / name for name in files]


def _tensors_of(path: Path) -> dict[str, torch.Tensor]:
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except pickle.UnpicklingError as error:
        raise EntMTPError(
            f"heads: {path} holds more than tensors, and what else it holds could run code;"
            " save the heads' state_dict alone"
        ) from error
    except Exception as error:  # zipfile, torch and safetensors each raise their own types for a bad file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EntMTPError(f"heads: {path} can't be read ({reason}); download it again") from error


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        names = _checked(file.keys())
        return {name: file.get_tensor(name) for name in names}


def _pickled(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as file:
        # torch.save does not compress; a compressed file could expand to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("it is compressed, which torch.save never does")
    state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state_dict.items()
    ):
        raise ValueError("it is not a dictionary of tensors")
    return {name: state_dict[name].detach() for name in _checked(state_dict)}


def _checked(names: Collection[str]) -> list[str]:
    if len(names) > MAX_TENSORS:
        raise ValueError(f"it has {len(names)} tensors, more than the {MAX_TENSORS} that heads may have")
    return list(names)


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def preview_names(names: Iterable[str]) -> str:
    """The first few tensor names for a message, each cut to a bounded length since the file is untrusted."""
    known = sorted(names)
    shown = ", ".join(repr(name[:_NAME]) for name in known[:_SHOWN])
    more = len(known) - _SHOWN
    return (f"tensors {shown}" + (f" and {more} more" if more > 0 else "")) if known else "no tensors"
