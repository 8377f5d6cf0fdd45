"""The plan of a benchmark: its units, the store of its results, and everything that the results depend on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.overlap_description import Overlap
from entmtp.evaluation.results.rows import finished_keys, read_metadata
from entmtp.evaluation.results.storage import Store
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.worker import WorkerConfig
from entmtp.heads.checkpoint import file_hash
from entmtp.settings import BenchmarkSettings


@dataclass(frozen=True)
class Plan:
    """A validated benchmark: every unit of work, and where its results go.

    Attributes:
        config: of each worker.
        depends_on: everything but the prompts that all units' rows depend on, each as text.
        overlap: how many of the suites' prompts the heads were trained on.
        retry: whether units with prompts that were set aside are run again.
    """

    profile: str
    settings: BenchmarkSettings
    arms: list[str]
    config: WorkerConfig
    units: list[Unit]
    results: Store
    tracking_uri: str
    depends_on: dict[str, str]
    overlap: dict[str, Overlap | str]
    retry: bool = False
    command: str = field(default_factory=lambda: " ".join(sys.argv))

    @property
    def parts(self) -> Store:
        """The folder of Parquet parts. Runs with other settings have other part names in it."""
        return self.results.at("parts")

    @property
    def waiting(self) -> list[Unit]:
        """Units to run: those whose part does not exist yet."""
        finished = finished_keys(self.parts)
        if self.retry and (done := [unit.key for unit in self.units if unit.key in finished]):
            metadata = read_metadata(self.parts, done)
            finished -= {key for key, part in zip(done, metadata, strict=True) if part.get("set_aside")}
        return [unit for unit in self.units if unit.key not in finished]

    def foreign_parts_note(self) -> str:
        """A sentence about parts of other settings in the same folder; empty where there are none."""
        foreign = sorted(finished_keys(self.parts) - {unit.key for unit in self.units})
        if not foreign:
            return ""
        theirs = read_metadata(self.parts, foreign[:1])[0].get("depends_on", {})
        differs = [
            f"{name} is {theirs.get(name, 'absent')} there and {self.depends_on.get(name, 'absent')} here"
            for name in {**self.depends_on, **theirs}
            if theirs.get(name) != self.depends_on.get(name)
        ]
        why = f" ({differs[0]})" if theirs and differs else ""
        return f"{len(foreign)} parts in {self.parts} are of other prompts or settings{why}; they stay and are not used"

    def check_hardware(self, hardware: str) -> None:
        """Raise EntMTPError if this plan's units were measured on other hardware so far."""
        if (before := self.hardware()) not in (None, hardware):
            raise EntMTPError(
                f"results: units in '{self.results}' were measured on '{before}' and here is '{hardware}';"
                " times of both are never mixed: give another --results, or the hardware of before"
            )

    def hardware(self) -> str | None:
        """Name of the hardware that the finished units were measured on; None where none is finished."""
        finished = finished_keys(self.parts)
        for unit in self.units:
            if unit.key in finished and (found := read_metadata(self.parts, [unit.key])[0].get("hardware")):
                return str(found)
        return None


def bank_task(config: WorkerConfig, suite: str) -> str:
    """Name of the tree banks of a suite's arms: the suite's own, or those that the table of protocols names."""
    return " and ".join(sorted({Path(path).stem.rpartition("-")[0] for path in config.banks[suite].values()}))


def dependency_hashes(config: WorkerConfig) -> dict[str, str]:
    """Hashes of everything but the prompts and settings that a unit's rows depend on."""
    identity = {"model": config.model, "dtype": config.dtype}
    for kind, source in config.heads.items():
        weights = Path(source) / "model.safetensors"
        identity[f"heads-{kind}"] = file_hash(weights) if weights.is_file() else source
    for suite, files in config.banks.items():
        identity |= {f"bank-{suite}-{kind}": file_hash(Path(path)) for kind, path in files.items()}
    return identity
