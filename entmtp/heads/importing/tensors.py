"""Tensors out of files that nobody vouches for: nothing in them is run, and each one is checked when it is used."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from entmtp.errors import EntMTPError

MAX_BYTES = 32 * 2**30
"""Of a checkpoint; five heads of a 70B model with 128,000 tokens have 10 GiB in 16 bits."""
MAX_TENSORS = 4096

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_TOKEN_TYPES = (torch.int32, torch.int64)
_PREFIXES = "medusa_heads.", "medusa_head."
_SHOWN, _NAME = 4, 80


class Tensors:
    """A checkpoint's tensors by name, each to be taken once; a prefix of Medusa's wrapper models is left out.

    Every method raises EntMTPError where the file doesn't hold what it asks for.
    """

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self._path = path
        self._left = {_bare(name): tensor for name, tensor in tensors.items()}
        if len(self._left) != len(tensors):
            raise self.wrong("some tensors are there with and without a prefix")

    def __iter__(self) -> Iterator[str]:
        return iter(self._left)

    def __contains__(self, name: object) -> bool:
        return name in self._left

    def wrong(self, what: str) -> EntMTPError:
        """The error that says what is wrong with the file."""
        return EntMTPError(f"heads: {self._path}: {what}; give an unchanged checkpoint of a published layout")

    def size(self, name: str, dimension: int) -> int:
        """Of a matrix."""
        tensor = self._named(name)
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise self.wrong(f"tensor '{name}' has shape {list(tensor.shape)}, not that of a matrix")
        return tensor.shape[dimension]

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A floating-point tensor of this shape, all its values finite."""
        tensor = self._plain(name, *shape)
        if tensor.dtype not in _FLOATS:
            raise self.wrong(f"tensor '{name}' is of type {tensor.dtype}, not float32, bfloat16 or float16")
        if not torch.isfinite(tensor).all():
            raise self.wrong(f"tensor '{name}' has values that are not finite")
        return tensor

    def take_tokens(self, name: str, count: int, vocab_size: int) -> torch.Tensor:
        """Different token ids ``[count]`` below ``vocab_size``."""
        tensor = self._plain(name, count)
        if tensor.dtype not in _TOKEN_TYPES:
            raise self.wrong(f"tensor '{name}' is of type {tensor.dtype}, not int32 or int64")
        if not 0 <= int(tensor.min()) <= int(tensor.max()) < vocab_size or len(tensor.unique()) != count:
            raise self.wrong(f"tensor '{name}' holds tokens twice, or outside the vocabulary of {vocab_size}")
        return tensor.to(torch.int32)

    def close(self) -> None:
        """To be called when all is taken that belongs to the heads: nothing may be left."""
        if self._left:
            raise self.wrong(f"{some(self._left)} should not be there")

    def _named(self, name: str) -> torch.Tensor:
        if name not in self._left:
            raise self.wrong(f"tensor '{name}' is missing")
        return self._left[name]

    def _plain(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._named(name)
        if tensor.shape != shape:
            raise self.wrong(f"tensor '{name}' has shape {list(tensor.shape)} instead of {list(shape)}")
        # Strides could make billions of values out of a few bytes.
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise self.wrong(f"tensor '{name}' is not stored as plain numbers")
        return self._left.pop(name)


def read_tensors(path: Path) -> Tensors:
    """The tensors of a ``.safetensors`` file or of what ``torch.save`` made of a dictionary of tensors.

    Raises:
        EntMTPError: if the file is too large, damaged, or holds anything else.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise EntMTPError(
            f"heads: {path} has {size / 2**30:.0f} GiB, more than the {MAX_BYTES // 2**30} that heads may have;"
            " give a checkpoint of heads alone"
        )
    try:
        tensors = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except pickle.UnpicklingError as error:
        raise EntMTPError(
            f"heads: {path} holds more than tensors, and what else it holds could run code;"
            " save the heads' state_dict alone"
        ) from error
    except Exception as error:  # zipfile, torch and safetensors each raise their own types for a bad file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EntMTPError(f"heads: {path} can't be read ({reason}); download it again") from error
    return Tensors(path, tensors)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        names = _checked(file.keys())
        return {name: file.get_tensor(name) for name in names}


def _pickled(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as file:
        # torch.save compresses nothing; what is compressed could be of any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("it is compressed, which torch.save never does")
    held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(held, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in held.items()
    ):
        raise ValueError("it is not a dictionary of tensors")
    return {name: held[name].detach() for name in _checked(held)}


def _checked(names: Collection[str]) -> list[str]:
    if len(names) > MAX_TENSORS:
        raise ValueError(f"it has {len(names)} tensors, more than the {MAX_TENSORS} that heads may have")
    return list(names)


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def some(names: Iterable[str]) -> str:
    """A few of the tensors' names, for a message; a file decides what is in them."""
    known = sorted(names)
    shown = ", ".join(repr(name[:_NAME]) for name in known[:_SHOWN])
    more = len(known) - _SHOWN
    return (f"tensors {shown}" + (f" and {more} more" if more > 0 else "")) if known else "no tensors"
