"""The process of one part: it reads its assignment from the command line and measures.

python -m benchmarks.gpu.worker steps --shape vicuna-7b --output results/gpu --seconds 180
"""

from __future__ import annotations

import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError

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
        try:
            from benchmarks.gpu.assignment import Assignment

            import_module(f"benchmarks.gpu.{part}").measure(Assignment(shape, output, BEGAN + seconds, dry))
        except EntMTPError:
            raise
        except Exception as error:  # of any type: the last line says what it was, also where its text has many
            traceback.print_exc()
            raise EntMTPError(" ".join(f"{type(error).__name__}: {error}".split())) from error


if __name__ == "__main__":
    typer.run(main)
