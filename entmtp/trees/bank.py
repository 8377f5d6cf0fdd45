"""A tree bank: the Pareto-optimal trees of one task and one kind of heads, over all steps and per entropy bin.

Trees are stored as *frontiers*. A frontier lists paths in the order in which to add them: its first n paths are the
optimal tree of n nodes. The best n depends on the machine; :mod:`entmtp.policies.ladder` chooses it.
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
from entmtp.trees.probability_calibration import ProbabilityCalibration, no_estimates
from entmtp.trees.topology import Topology
from entmtp.trees.tuning_texts import TuningTexts

MAX_BANK_BYTES = 16 * 2**20
MAX_NODES = 255
"""Largest number of nodes of a tree in a bank."""


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
        """The optimal tree with at most ``nodes`` nodes."""
        count = min(nodes, len(self.paths))
        return Topology.of(self.paths[:count]) if count else Topology.root_only()

    @cached_property
    def trees(self) -> list[Topology]:
        """The optimal trees of every size, plain decoding first."""
        return [self.tree(nodes) for nodes in range(len(self.paths) + 1)]

    @cached_property
    def choices(self) -> list[tuple[Topology, float]]:
        """Trees with their gains, plain decoding first: those of every size, and those cut at a smaller depth.

        Valid only where a gain is the sum of its paths' probabilities, as in an entropy bin.
        """
        gains = dict(zip(self.trees, self.gain, strict=True))
        probability = dict(zip(self.paths, np.diff(self.gain).tolist(), strict=True))
        for depth in range(1, max(map(len, self.paths), default=0)):
            paths = [path for path in self.paths if len(path) <= depth]
            for nodes in range(1, len(paths) + 1):
                gains.setdefault(Topology.of(paths[:nodes]), 1 + sum(map(probability.__getitem__, paths[:nodes])))
        return list(gains.items())


class Provenance(BaseModel):
    """Origin of a bank: model, heads, prompts, machine and versions."""

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
    """A tree bank, stored as one JSON file.

    Attributes:
        entropy_window: steps in the moving average of the entropy that selects a bin.
        thresholds: boundaries between neighbouring entropy bins, in nats, increasing.
        overall: the frontier over all steps.
        shallower: frontiers of trees with depth at most 1, 2, ..., up to one level less than ``overall``.
        bins: one frontier per entropy bin, lowest entropy first.
        predictor: expected gain of any tree, given the signals of a step.
        chances: calibration of the heads' probabilities.
        tuning: texts on which thresholds and bins are tuned again where the bank is used; None if it has none.
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
        if not 0.99 < (total := sum(frontier.share for frontier in self.bins)) < 1.01:
            raise ValueError(f"the bins' shares add up to {total:.3f}, not to 1")
        return self

    @property
    def by_depth(self) -> list[Frontier]:
        """Frontiers over all steps, by depth; the best static tree is chosen from them."""
        return [*self.shallower, self.overall]

    def save(self, path: Path) -> None:
        """Write the bank as a whole file, so that no reader sees half of it."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def check_heads(
        self, *, kind: str, num_heads: int, model_fingerprint: str, heads_fingerprint: str, estimates_acceptance: bool
    ) -> None:
        """Check that the bank fits the heads.

        Raises:
            EntMTPError: if it was made with other heads or another model, has a tree too deep for them, or reads
                estimates that they don't make.
        """
        for field, expected in (
            ("heads_kind", kind),
            ("model_fingerprint", model_fingerprint),
            ("heads_fingerprint", heads_fingerprint),
        ):
            if (actual := getattr(self.provenance, field)) != expected:
                raise EntMTPError(
                    f"bank: its {field} is {actual[:12]}, yours is {expected[:12]}; use a bank made with these heads,"
                    f" or make one with 'entmtp calibrate --task {self.provenance.task}'"
                )
        self.check_depth(num_heads)
        if self.chances.reads_estimates and not estimates_acceptance:
            raise no_estimates()

    def check_depth(self, num_heads: int) -> None:
        """Raise EntMTPError if a tree is deeper than ``num_heads`` heads can draft.

        The largest tree of a frontier contains all others, so only that one is checked.
        """
        for frontier in (*self.by_depth, *self.bins):
            frontier.tree(len(frontier.paths)).check_depth(num_heads)
        if self.tuning is not None and self.tuning.heads > num_heads:
            raise EntMTPError(
                f"bank: its tuning texts are ranked by {self.tuning.heads} heads but there are only {num_heads};"
                " use a bank made with these heads"
            )


def load_bank(path: Path) -> TreeBank:
    """Read a bank.

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
    """Path of the bank that is shipped for the bundled model."""
    return Path(str(files("entmtp") / "assets" / "banks" / f"{task}-{heads_kind}.json"))
