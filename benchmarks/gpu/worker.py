"""The process of one part: it reads its assignment from the command line and measures.

python -m benchmarks.gpu.worker steps --shape vicuna-7b --output results/gpu --seconds 180
"""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from entmtp.cli_errors import plain_errors

BEGAN = time.monotonic()
"""When the process started: loading counts too."""


def main(
    part: str,
    shape: Annotated[str, typer.Option()],
    output: Annotated[Path, typer.Option()],
    seconds: Annotated[float, typer.Option()],
    dry: Annotated[bool, typer.Option("--dry")] = False,
) -> None:
    """Measure one part."""
    with plain_errors(f"gpu {part}", "stopped by the clock; the record has what was measured"):
        from benchmarks.gpu.assignment import Assignment

        import_module(f"benchmarks.gpu.{part}").measure(Assignment(shape, output, BEGAN + seconds, dry))


if __name__ == "__main__":
    typer.run(main)
