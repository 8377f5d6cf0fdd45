"""A tree bank: the Pareto-optimal trees of one task for one kind of heads, in general and per entropy bin.

Trees are stored as *frontiers*: paths in the order in which to add them, so that the first n are the optimal tree of n
nodes. Which n pays depends on the machine and is decided where the bank is used (:mod:`entmtp.policies.ladder`).
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.trees.predictor import Predictor
from entmtp.trees.probability_calibration import ProbabilityCalibration
from entmtp.trees.topology import Topology
from entmtp.trees.tuning_texts import TuningTexts

MAX_BANK_BYTES = 16 * 2**20
MIXED = "mixed"
"""The task of a bank for all suites together."""

MAX_NODES = 255
"""Nodes of the largest tree that a bank may hold."""


class Frontier(BaseModel):
    """Optimal trees of every size: ``paths[:n]`` with ``gain[n]`` expected tokens per step (root included)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: list[tuple[Annotated[int, Field(ge=0)], ...]] = Field(max_length=MAX_NODES)
    gain: list[FiniteFloat]
    share: float = Field(ge=0, le=1, description="share of the calibration's steps that this frontier was made from")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.gain) != len(self.paths) + 1:
            raise ValueError("gain needs one more entry than paths: that of plain decoding comes first")
        known: set[tuple[int, ...]] = {()}
        for path in self.paths:
            if path in known:
                raise ValueError(f"path {path} is empty or comes twice")
            if path[:-1] not in known:
                raise ValueError(f"path {path} comes before its parent {path[:-1]}")
            known.add(path)
        return self

    def tree(self, nodes: int) -> Topology:
        """The optimal tree of at most ``nodes`` nodes."""
        count = min(nodes, len(self.paths))
        return Topology.of(self.paths[:count]) if count else Topology.root_only()

    @cached_property
    def trees(self) -> list[Topology]:
        """All of them, plain decoding first."""
        return [self.tree(nodes) for nodes in range(len(self.paths) + 1)]

    @cached_property
    def choices(self) -> list[tuple[Topology, float]]:
        """The trees, and those that stop at a lesser depth, with their gains; plain decoding first.

        Only where a gain is a sum of its paths' chances, as a bin's is.
        """
        found = dict(zip(self.trees, self.gain, strict=True))
        chance = dict(zip(self.paths, np.diff(self.gain).tolist(), strict=True))
        for depth in range(1, max(map(len, self.paths), default=0)):
            paths = [path for path in self.paths if len(path) <= depth]
            for nodes in range(1, len(paths) + 1):
                found.setdefault(Topology.of(paths[:nodes]), 1 + sum(map(chance.__getitem__, paths[:nodes])))
        return list(found.items())


class Provenance(BaseModel):
    """Where a bank comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    heads_kind: str
    model_fingerprint: str
    heads_fingerprint: str
    prompts: int
    prompts_sha256: str
    prompts_origin: str
    tokens: int
    hardware: str
    versions: dict[str, str]
    date: str


class TreeBank(BaseModel):
    """One JSON file.

    Attributes:
        entropy_window: steps of the entropy's moving average that the bins are about.
        thresholds: nats between neighbouring entropy bins, increasing.
        overall: the frontier over all steps.
        shallower: those of trees no deeper than 1, 2, ..., the last one level short of ``overall``.
        bins: one frontier per entropy bin, calmest first.
        predictor: what a step can expect to gain from any tree, given its signals.
        chances: how far the heads' own probabilities can be believed.
        tuning: the texts on which thresholds and bins are tuned again where the bank is used; None if it keeps none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(3, ge=3, le=3)
    provenance: Provenance
    entropy_window: int = Field(ge=1)
    thresholds: list[FiniteFloat]
    overall: Frontier
    shallower: list[Frontier]
    bins: list[Frontier] = Field(min_length=1)
    predictor: Predictor
    chances: ProbabilityCalibration
    tuning: TuningTexts | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.overall.paths:
            raise ValueError("overall has one tree only, plain decoding: there is nothing to choose from")
        if any(low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ValueError(f"thresholds {self.thresholds} must increase")
        if len(self.bins) != len(self.thresholds) + 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds need {len(self.thresholds) + 1} bins, not {len(self.bins)}"
            )
        if not 0.99 < (total := sum(one.share for one in self.bins)) < 1.01:
            raise ValueError(f"the bins' shares add up to {total:.3f}, not to 1")
        return self

    @property
    def by_depth(self) -> list[Frontier]:
        """Frontiers over all steps, from which the best static tree is taken."""
        return [*self.shallower, self.overall]

    def save(self, path: Path) -> None:
        """Writes the bank; a reader never sees half a file."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def check_heads(self, *, kind: str, num_heads: int, model_fingerprint: str, heads_fingerprint: str) -> None:
        """Raises EntMTPError if the bank is of other heads or another model, or has a tree too deep for them."""
        made_with = self.provenance
        for field, here in (
            ("heads_kind", kind),
            ("model_fingerprint", model_fingerprint),
            ("heads_fingerprint", heads_fingerprint),
        ):
            if (there := getattr(made_with, field)) != here:
                raise EntMTPError(
                    f"bank: its {field} is {there[:12]}, yours is {here[:12]};"
                    f" use a bank made with these heads, or make one with 'entmtp calibrate --task {made_with.task}'"
                )
        self.check_depth(num_heads)

    def check_depth(self, num_heads: int) -> None:
        """Raises EntMTPError if a tree is too deep for so many heads; the largest of a frontier holds all others."""
        for one in (*self.by_depth, *self.bins):
            one.tree(len(one.paths)).check_depth(num_heads)
        if self.tuning is not None and self.tuning.heads > num_heads:
            raise EntMTPError(
                f"bank: its tuning texts are ranked by {self.tuning.heads} heads but there are only {num_heads};"
                " use a bank made with these heads"
            )


def load_bank(path: Path) -> TreeBank:
    """Reads a bank.

    Raises:
        EntMTPError: if the file is absent, too big, or not a valid bank; the message names the field.
    """
    if not path.is_file():
        raise EntMTPError(f"bank: {path} does not exist; make one with 'entmtp calibrate'")
    if path.stat().st_size > MAX_BANK_BYTES:
        raise EntMTPError(f"bank: {path} is larger than {MAX_BANK_BYTES} bytes; it can't be a tree bank")
    try:
        return TreeBank.model_validate_json(path.read_text(encoding="utf-8-sig"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"]) or "file"
        what = str(first["msg"]).removeprefix("Value error, ")
        raise EntMTPError(f"bank: {path}: {where}: {what}; make it again with 'entmtp calibrate'") from error


def bundled_bank(task: str, heads_kind: str) -> Path:
    """The bank that is shipped for the bundled model."""
    return Path(str(files("entmtp") / "assets" / "banks" / f"{task}-{heads_kind}.json"))
