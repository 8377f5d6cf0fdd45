"""What a published layout is for the importer, and what layouts have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig

from entmtp.errors import EntMTPError
from entmtp.heads.importing.source import Source
from entmtp.heads.importing.tensors import Tensors
from entmtp.heads.original import OriginalHeads

MAX_COUNT = 16
"""Heads, and blocks of a head: as many as heads that we train may be."""


@dataclass
class Reading:
    """One import.

    Attributes:
        model: configuration of the model that the heads are for, None where none was given.
        notes: what the user should know of how the checkpoint was read.
    """

    source: Source
    tensors: Tensors
    model: PreTrainedConfig | None
    notes: list[str] = field(default_factory=list)

    def agree(self, name: str, said: int | None, found: int) -> int:
        """The number ``found`` among the tensors, where the configuration ``said`` another under ``name``.

        Configurations are known to say too little (Medusa's first ones name 2 of 5 heads), so the tensors decide;
        what the configuration names beyond them is missing.

        Raises:
            EntMTPError: if it says more than there is.
        """
        path = self.source.config_path
        if said is not None and said > found:
            raise EntMTPError(
                f"heads: {path}: {name} is {said} but the tensors are those of {found};"
                " give the configuration and the weights of one checkpoint"
            )
        if said is not None and said < found:
            self.notes.append(f"{path.name} says {name} {said}, but there are tensors for {found}: all are imported")
        return found

    def vocabulary(self, said: int | None) -> int:
        """The model's vocabulary where no tensor tells its size.

        Raises:
            EntMTPError: if nothing else tells it either.
        """
        if said is not None:
            return said
        size: int = self.model_config("these heads end in the model's own output layer", "its vocabulary").vocab_size
        return size

    def model_config(self, why: str, what: str) -> Any:
        """The model's configuration, without which nothing tells ``what``.

        Raises:
            EntMTPError: if no model was given, and ``why`` it is needed.
        """
        if self.model is None:
            base = self.source.config.get("base_model_name_or_path")
            named = f", here probably {base!r}" if isinstance(base, str) else ""
            raise EntMTPError(
                f"model: {why} and nothing tells {what}; give --model with the model that they are for{named}"
            )
        return self.model


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        words: what a user reads about it.
        recognises: whether tensors of these names are of this layout.
        read: takes them all and makes heads of them.
    """

    words: str
    recognises: Callable[[Iterable[str]], bool]
    read: Callable[[Reading], OriginalHeads]


def indices(names: Iterable[str], pattern: str) -> list[tuple[int, ...]]:
    """The numbers in the names that match ``pattern``, sorted."""
    found = (re.fullmatch(pattern, name) for name in names)
    return sorted(tuple(int(number) for number in match.groups()) for match in found if match)


def counted(tensors: Tensors, numbers: Iterable[int], what: str) -> int:
    """One more than the largest of ``numbers``, within bounds."""
    count = 1 + max(numbers)
    if count > MAX_COUNT:
        raise tensors.wrong(f"there are tensors for {count} {what}, more than {MAX_COUNT}")
    return count


def stacked(rows: Iterable[Iterable[torch.Tensor]]) -> torch.Tensor:
    """``[rows, columns, ...]``."""
    return torch.stack([torch.stack(list(row)) for row in rows])


def square_blocks(tensors: Tensors, names: Sequence[Sequence[str]], hidden: int) -> dict[str, torch.Tensor]:
    """The parameters of square blocks, of which ``names`` has a row for each head; weights come before biases."""
    return {
        "block_weight": stacked((tensors.take(f"{name}.weight", hidden, hidden) for name in row) for row in names),
        "block_bias": stacked((tensors.take(f"{name}.bias", hidden) for name in row) for row in names),
    }


def assembled(
    kind: type[OriginalHeads],
    parameters: dict[str, torch.Tensor],
    draft_vocab: torch.Tensor | None = None,
    **config: Any,
) -> OriginalHeads:
    """Heads with these parameters, all of one type, that guess within ``draft_vocab``, or the whole vocabulary."""
    if draft_vocab is None:
        draft_vocab = torch.arange(config["vocab_size"], dtype=torch.int32)
    with torch.device("meta"):
        heads = kind(kind.config_class(draft_vocab_size=len(draft_vocab), **config))
    dtypes = {tensor.dtype for tensor in parameters.values() if tensor.numel()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    state = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    heads.load_state_dict(state | {"draft_vocab": draft_vocab}, assign=True)
    return heads
