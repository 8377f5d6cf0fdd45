"""All kernels compile for GPUs of compute capability 8.0 and 9.0, and fit them, without one at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024}
"""Shared memory of a program: of capability 8.6, which runs what is made for 8.0, and of 9.0."""


@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_kernels_fit_gpus_and_spill_nothing(which: str, tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.helpers.compiled_triton_kernels", which]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    compiled = [json.loads(line) for line in printed.splitlines()]
    assert {each["capability"] for each in compiled} == {80, 90}
    for each in compiled:
        assert each["shared"] <= SHARED_BYTES[each["capability"]], each
        assert (each["stack"], each["local"]) == (0, 0), each
