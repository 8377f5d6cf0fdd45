"""Interface of a published layout to the importer, and functions that layouts share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.heads.importing.source import Source
from entmtp.heads.importing.tensors import Tensors
from entmtp.heads.original import OriginalHeads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Heads = TypeVar("Heads", bound=DraftHeads)

MAX_COUNT = 16
"""Limit on heads and on blocks of a head, as for heads that are trained here."""


@dataclass
class HeadsImport:
    """One import of a checkpoint.

    Attributes:
        model: configuration of the model that the heads are for; None if no model was given.
        notes: messages for the user about the checkpoint.
    """

    source: Source
    tensors: Tensors
    model: PreTrainedConfig | None
    notes: list[str] = field(default_factory=list)

    def resolve_count(self, name: str, configured: int | None, found: int) -> int:
        """Returns the count ``found`` among the tensors, checked against field ``name`` of the configuration.

        Some configurations name too few (Medusa's first ones name 2 of 5 heads), so the tensors decide. If the
        configuration names more, tensors are missing.

        Raises:
            EntMTPError: if ``configured`` is larger than ``found``.
        """
        path = self.source.config_path
        if configured is not None and configured > found:
            raise EntMTPError(
                f"heads: {path}: {name} is {configured} but the tensors are those of {found};"
                " give the configuration and the weights of one checkpoint"
            )
        if configured is not None and configured < found:
            self.notes.append(
                f"{path.name} says {name} {configured}, but there are tensors for {found}: all are imported"
            )
        return found

    def vocab_size(self, configured: int | None) -> int:
        """The model's vocabulary size if no tensor has it: the heads' configuration's, else the model's.

        Raises:
            EntMTPError: if neither is known.
        """
        if configured is not None:
            return configured
        size: int = self.model_config("these heads end in the model's own output layer", "its vocabulary").vocab_size
        return size

    def model_config(self, reason: str, missing: str) -> Any:
        """The model's configuration, from which ``missing`` is read.

        Raises:
            EntMTPError: if no model was given; it says the ``reason`` why one is needed.
        """
        if self.model is None:
            base = self.source.config.get("base_model_name_or_path")
            named = f", here probably {base!r}" if isinstance(base, str) else ""
            raise EntMTPError(
                f"model: {reason} and nothing tells {missing}; give --model with the model that they are for{named}"
            )
        return self.model


@dataclass(frozen=True)
class Layout(Generic[Heads]):
    """A published layout.

    Attributes:
        description: its name in messages to the user.
        matches: whether tensors of these names are in this layout.
        read: makes heads from all tensors.
        summary: describes these heads to the user.
    """

    description: str
    matches: Callable[[Iterable[str]], bool]
    read: Callable[[HeadsImport], Heads]
    summary: Callable[[Heads], str]


def indices(names: Iterable[str], pattern: str) -> list[tuple[int, ...]]:
    """Numbers in the names that match ``pattern``, sorted."""
    found = (re.fullmatch(pattern, name) for name in names)
    return sorted(tuple(int(number) for number in match.groups()) for match in found if match)


def count_from_indices(tensors: Tensors, numbers: Iterable[int], what: str) -> int:
    """One more than the largest index. Raises EntMTPError beyond :data:`MAX_COUNT`; ``what`` is counted."""
    count = 1 + max(numbers)
    if count > MAX_COUNT:
        raise tensors.error(f"there are tensors for {count} {what}, more than {MAX_COUNT}")
    return count


def stack_grid(rows: Iterable[Iterable[torch.Tensor]]) -> torch.Tensor:
    """Stacks rows of tensors into one tensor ``[rows, columns, ...]``."""
    return torch.stack([torch.stack(list(row)) for row in rows])


def square_blocks(tensors: Tensors, names: Sequence[Sequence[str]], hidden: int) -> dict[str, torch.Tensor]:
    """Parameters of square blocks; ``names`` has a row of blocks for each head."""
    return {
        "block_weight": stack_grid((tensors.take(f"{name}.weight", hidden, hidden) for name in row) for row in names),
        "block_bias": stack_grid((tensors.take(f"{name}.bias", hidden) for name in row) for row in names),
    }


def summary_of_blocks(heads: OriginalHeads) -> str:
    """Describes heads of residual blocks."""
    config = heads.config
    output = {0: "the model's own output layer", 1: "one output layer"}.get(config.outputs, "an output layer each")
    return f"{config.num_heads} {heads.kind} heads of {config.num_layers} blocks with {output}"


def build_heads(
    kind: type[Heads],
    parameters: dict[str, torch.Tensor],
    draft_vocab: torch.Tensor | None = None,
    **config: Any,
) -> Heads:
    """Heads with these parameters, in one floating-point type. ``draft_vocab`` None is the whole vocabulary."""
    if draft_vocab is None:
        draft_vocab = torch.arange(config["vocab_size"], dtype=torch.int32)
    with torch.device("meta"):
        heads = kind(kind.config_class(draft_vocab_size=len(draft_vocab), **config))
    dtypes = {tensor.dtype for tensor in parameters.values() if tensor.numel()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    state = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    heads.load_state_dict(state | {"draft_vocab": draft_vocab}, assign=True)
    return heads
