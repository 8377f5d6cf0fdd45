"""Hardware profiles: measured step costs of other machines, from which replay predicts speedups there.

A profile is a measured grid of node budgets, batch sizes and context lengths for one model shape and kind of heads.
Some are shipped (:func:`known_profiles`). The owner of a GPU adds one with one command from the root of a checkout::

    python -m benchmarks.step --shape vicuna-7b --dtype bfloat16 --batch 1 --batch 4 --batch 16 \\
        --context 512 --context 4096 --save-profile entmtp/assets/hardware/h100.json
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.policies.step_cost import StepCost

MAX_PROFILE_BYTES = 2**20

Milliseconds = Annotated[FiniteFloat, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class ProfileProvenance(BaseModel):
    """Provenance of a profile: machine, model, versions and the command that measured it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hardware: str
    date: str
    command: str
    commit: str
    model: str
    heads_kind: str
    dtype: str
    kernels: str
    versions: dict[str, str]


class ProfilePoint(BaseModel):
    """Median milliseconds of a step of ``batch`` requests with ``context`` cached tokens each.

    Attributes:
        policy_ms, verify_ms, accept_ms, compact_ms: per node budget of the profile.
        rest_ms: per node budget, host time outside all other parts.
        narrow_draft_ms, wide_draft_ms: per depth 1, 2, ... for a chain and for a tree of the profile's ``wide_nodes``.
        expanded_draft_ms: per depth, for a tree that is chosen while the heads draft; includes the host's work and the
            waiting between levels. None if it was not measured. The field of the file is ``grown_draft_ms``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    batch: Size
    context: Size
    policy_ms: list[Milliseconds]
    verify_ms: list[Annotated[FiniteFloat, Field(gt=0)]]
    accept_ms: list[Milliseconds]
    compact_ms: list[Milliseconds]
    rest_ms: list[Milliseconds]
    narrow_draft_ms: list[Annotated[FiniteFloat, Field(gt=0)]] = Field(min_length=1)
    wide_draft_ms: list[Annotated[FiniteFloat, Field(gt=0)]] = Field(min_length=1)
    expanded_draft_ms: list[Annotated[FiniteFloat, Field(gt=0)]] | None = Field(None, alias="grown_draft_ms")

    @property
    def drafts(self) -> list[list[float]]:
        """All measured times of drafting."""
        expanded = [] if self.expanded_draft_ms is None else [self.expanded_draft_ms]
        return [self.narrow_draft_ms, self.wide_draft_ms, *expanded]

    @property
    def without_draft_ms(self) -> np.ndarray:
        """The whole step without drafting, per node budget."""
        parts = (self.policy_ms, self.verify_ms, self.accept_ms, self.compact_ms, self.rest_ms)
        return np.array(parts).sum(0)


class HardwareProfile(BaseModel):
    """One JSON file: a point for every pair of a batch size and a context length.

    Attributes:
        padded: whether trees were padded (:class:`~entmtp.policies.step_cost.StepCost`). Files without the field are
            read as measured: linear between their node budgets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(1, ge=1, le=1)
    measured: ProfileProvenance
    nodes: list[Annotated[int, Field(ge=0)]] = Field(min_length=2)
    batches: list[Size] = Field(min_length=1)
    contexts: list[Size] = Field(min_length=1)
    wide_nodes: Size
    padded: bool = False
    points: list[ProfilePoint]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, grid in (("nodes", self.nodes), ("batches", self.batches), ("contexts", self.contexts)):
            if sorted(set(grid)) != grid:
                raise ValueError(f"{name} {grid} must increase")
        if self.nodes[0] != 0:
            raise ValueError(f"nodes must start at 0, plain decoding, not at {self.nodes[0]}")
        pairs = [(point.batch, point.context) for point in self.points]
        if missing := [pair for pair in itertools.product(self.batches, self.contexts) if pair not in pairs]:
            raise ValueError(f"batch {missing[0][0]} with context {missing[0][1]} was not measured")
        if len(pairs) != len(self.batches) * len(self.contexts):
            raise ValueError("points has one for more than every pair of batches and contexts, or one twice")
        if len({point.expanded_draft_ms is None for point in self.points}) > 1:
            raise ValueError("grown_draft_ms was measured at some points and not at others")
        depths = {len(draft) for point in self.points for draft in point.drafts}
        if len(depths) > 1:
            raise ValueError(f"drafting was measured to different depths: {sorted(depths)}")
        for point in self.points:
            for part in ("policy_ms", "verify_ms", "accept_ms", "compact_ms", "rest_ms"):
                if len(getattr(point, part)) != len(self.nodes):
                    raise ValueError(
                        f"batch {point.batch} with context {point.context} has {len(getattr(point, part))} times for"
                        f" {part} and {len(self.nodes)} node budgets"
                    )
        return self

    def cost(self, batch: int = 1, context: int | None = None) -> StepCost:
        """Cost of a step of ``batch`` requests with ``context`` cached tokens each, linear between measured points.

        If ``context`` is None, it is the shortest measured one.

        Raises:
            EntMTPError: outside the measured grid.
        """
        weights = self._weights(batch, context)
        return StepCost(
            nodes=self.nodes,
            verify_ms=(weights @ [point.without_draft_ms for point in self.points]).tolist(),
            narrow_draft_ms=(weights @ [point.narrow_draft_ms for point in self.points]).tolist(),
            wide_draft_ms=(weights @ [point.wide_draft_ms for point in self.points]).tolist(),
            wide_nodes=self.wide_nodes,
            hardware=self.measured.hardware,
            padded=self.padded,
        )

    def expanded_cost(self, batch: int = 1, context: int | None = None) -> StepCost | None:
        """Cost of a step whose trees are expanded level by level; None if it was not measured.

        Arguments and errors are those of :meth:`cost`. Drafting costs the same for any number of nodes.
        """
        expanded = [point.expanded_draft_ms for point in self.points if point.expanded_draft_ms is not None]
        if not expanded:
            return None
        draft_ms = (self._weights(batch, context) @ expanded).tolist()
        return self.cost(batch, context).model_copy(update={"narrow_draft_ms": draft_ms, "wide_draft_ms": draft_ms})

    def _weights(self, batch: int, context: int | None) -> np.ndarray:
        """Interpolation weight of each of the ``points``, ``[points]``."""
        context = self.contexts[0] if context is None else context
        for name, value, grid in (("batch", batch, self.batches), ("context", context, self.contexts)):
            if not grid[0] <= value <= grid[-1]:
                raise EntMTPError(
                    f"{name}: {value} lies outside what the profile of {self.measured.hardware} measured,"
                    f" {grid[0]} to {grid[-1]}; choose one within"
                )
        return np.array(
            [
                _weight(self.batches, point.batch, batch) * _weight(self.contexts, point.context, context)
                for point in self.points
            ]
        )

    def save(self, path: Path) -> None:
        """Write the profile atomically: a reader never sees half a file."""
        write_text(path, self.model_dump_json(indent=1, by_alias=True) + "\n")


def _weight(grid: Sequence[int], here: int, value: int) -> float:
    """Weight of the grid point ``here`` in a linear interpolation at ``value``."""
    return float(np.interp(value, grid, [float(point == here) for point in grid]))


def known_profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.name.removesuffix(".json") for path in _folder().glob("*.json"))


def load_profile(name: str) -> HardwareProfile:
    """Load a shipped profile by its name, or any profile by the path of its file.

    Raises:
        EntMTPError: if the profile is unknown or incomplete; the message names the field.
    """
    path = Path(name) if name.endswith(".json") else _folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(known_profiles()) or "none is shipped"
        raise EntMTPError(f"profile: '{name}' is neither a file nor a known profile ({known}); give one of them")
    if path.stat().st_size > MAX_PROFILE_BYTES:
        raise EntMTPError(f"profile: {path} is larger than {MAX_PROFILE_BYTES} bytes; it can't be a profile")
    try:
        return HardwareProfile.model_validate_json(path.read_text(encoding="utf-8-sig"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"])) or "file"
        what = str(first["msg"]).removeprefix("Value error, ")
        raise EntMTPError(
            f"profile: {path}: {where}: {what}; measure it again with 'python -m benchmarks.step --save-profile FILE'"
        ) from error


def _folder() -> Path:
    return Path(str(files("entmtp") / "assets" / "hardware"))
