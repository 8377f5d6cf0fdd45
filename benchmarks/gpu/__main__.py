#!/usr/bin/env python3
"""Measurement of a machine with one NVIDIA GPU, in ten minutes, without a network.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --part steps --output results/steps
    python -m benchmarks.gpu --dry                # every part on a CPU, in tiny: whether all of it runs

Each part is a process of its own with a limit of its own, so that one that hangs, crashes or runs out of memory leaves
the others alone. A part writes its record after every cell: what was measured before its end is there. The folder of
``--output`` gets the records, a hardware profile (:mod:`entmtp.policies.hardware_profile`) and everything printed.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, TextIO

import typer

from benchmarks import origin
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.processes import Ending, run_process
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.files import make_folder

REQUIRED = (
    "torch",
    "transformers",
    "pydantic",
    "numpy",
    "pyarrow",
    "scipy",
    "rich",
    "matplotlib",
    "filelock",
    "safetensors",
)
"""Packages that parts import."""
LOG = "log.txt"
ENDING_SECONDS = 12.0
"""The time that ending a part may take at most, with the summary."""
Say = Callable[[str], None]


def main(
    shape: Annotated[str | None, typer.Option(help="random weights: vicuna-7b, small or tiny")] = None,
    parts: Annotated[
        list[str] | None, typer.Option("--part", help=f"may repeat; else {', '.join(part.name for part in PARTS)}")
    ] = None,
    limit: Annotated[float, typer.Option(min=1, help="seconds for all parts")] = 570,
    output: Annotated[Path, typer.Option(help="folder of the records")] = Path("results/gpu"),
    dry: Annotated[
        bool, typer.Option("--dry", help="on a CPU, one repetition of everything, no record counts")
    ] = False,
    uncommitted: Annotated[bool, typer.Option("--uncommitted", help="although files differ from the commit")] = False,
) -> None:
    """Measure part by part, and say at the end how each one ended."""
    began = time.monotonic()
    with plain_errors("gpu", "what was measured is in the records"):
        chosen = chosen_parts(parts)
        if dry:  # whether all of it runs, on however slow a CPU
            chosen = [replace(part, most_seconds=limit) for part in chosen]
        check_packages()
        if not dry:
            check_gpu()
            if not uncommitted:
                origin.check_committed()
        make_folder("output", output)
        options = ["--shape", shape or ("tiny" if dry else "vicuna-7b"), "--output", str(output), *["--dry"] * dry]
        with _interruptible(), (output / LOG).open("w", encoding="utf-8") as log:
            endings = run_parts(chosen, options, began + limit, partial(_say, began, log))
        if failed := [name for name, ending in endings.items() if ending.failed]:
            raise EntMTPError(f"part: {', '.join(failed)} failed; {output / LOG} has all that was printed")


def chosen_parts(names: list[str] | None) -> list[Part]:
    """The parts called ``names``, in the order of their value; all if none is named."""
    known = {part.name: part for part in PARTS}
    for name in names or []:
        if name not in known:
            raise EntMTPError(f"part: '{name}' is unknown; choose from {', '.join(known)}")
    return [part for name, part in known.items() if not names or name in names]


def check_packages() -> None:
    """Raise EntMTPError if a package is missing that the parts need."""
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        raise EntMTPError(
            f"packages: {', '.join(missing)} can't be imported by {sys.executable}; pip install them (without a network"
            " from wheels, with --no-index), or give make another GPU_PYTHON"
        )


def check_gpu() -> None:
    """Raise EntMTPError if PyTorch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise EntMTPError(
            f"device: PyTorch {torch.__version__} sees no NVIDIA GPU; run this where nvidia-smi lists one, with a"
            " PyTorch for CUDA, or give --dry to run everything in tiny on the CPU"
        )


def run_parts(parts: list[Part], options: list[str], deadline: float, say: Say) -> dict[str, Ending]:
    """Run parts one after another until ``deadline``, by :func:`time.monotonic`; returns their endings by name.

    ``options`` are the worker's, without its seconds.
    """
    endings: dict[str, Ending] = {}
    for number, part in enumerate(parts, 1):
        left = deadline - time.monotonic() - ENDING_SECONDS
        if reason := part.unavailable_reason():
            endings[part.name] = Ending.skipped(reason)
        elif left < part.least_seconds:
            endings[part.name] = Ending.skipped(f"{max(0, left):.0f} s left, and it takes {part.least_seconds:.0f} s")
        else:
            seconds = min(left, part.most_seconds)
            say(f"part {number} of {len(parts)}, {part.name}: {part.description} (at most {seconds:.0f} s)")
            endings[part.name] = run_process(part.command(options, seconds), seconds, say)
        say(f"part {number} of {len(parts)}, {part.name}: {endings[part.name]}")
    say("Summary")
    for name, ending in endings.items():
        say(f"  {name:<12}{ending}")
    return endings


def _say(began: float, log: TextIO, line: str) -> None:
    stamped = f"[{time.monotonic() - began:5.0f} s] {line}"
    print(stamped, flush=True)
    print(stamped, file=log, flush=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """End by SIGTERM as by Ctrl-C, so that the running part is ended too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    typer.run(main)
