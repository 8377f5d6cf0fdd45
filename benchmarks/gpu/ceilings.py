"""Ceilings of the card: bandwidth and matrix rates that nothing exceeds, and what the card is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.assignment import Assignment, Sheet, print_table
from benchmarks.lib.record import Cell, Table
from benchmarks.lib.roofline import cache_bytes, measure_machine, multiply_adds_per_ms, read_bytes_per_ms

NOTES = [
    "copy counts the bytes that it reads and those that it writes; read is a sum of float32 numbers. Both exceed every"
    " cache. Products are of square random matrices, in float32 without TF32. Each is the best of ten.",
]
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,memory.total"


def measure(assignment: Assignment) -> None:
    """Measure the ceilings and describe the card."""
    rates = Table(title="ceilings", columns=["of", "rate", "unit"], rows=[])
    card = Table(title="card", columns=["fact", "value"], rows=[])
    sheet = Sheet(assignment, "ceilings", "Ceilings of the card", NOTES)

    def rate(measured: Callable[[], list[list[Cell]]]) -> None:
        rates.rows.extend(measured())
        sheet.tables = [table for table in (rates, card) if table.rows]

    def describe() -> None:  # right after products, while the clocks are those of work
        card.rows.extend(facts(assignment.device))
        sheet.tables = [rates, card]

    sheet.fill(
        {
            "copy and bfloat16": partial(rate, partial(_machine, assignment.device)),
            "card": describe,
            "read": partial(rate, partial(_read, assignment.device)),
            "float32": partial(rate, partial(_float32, assignment.device)),
        }
    )
    for table in sheet.tables:
        print_table(table)


def _machine(device: torch.device) -> list[list[Cell]]:
    machine = measure_machine(device, torch.bfloat16)
    return [
        ["copy", f"{machine.bytes_per_ms / 1e6:.1f}", "GB/s"],
        ["product in bfloat16", f"{2 * machine.multiply_adds_per_ms / 1e9:.2f}", "TFLOP/s"],
    ]


def _read(device: torch.device) -> list[list[Cell]]:
    return [["read", f"{read_bytes_per_ms(device) / 1e6:.1f}", "GB/s"]]


def _float32(device: torch.device) -> list[list[Cell]]:
    return [["product in float32", f"{2 * multiply_adds_per_ms(device, torch.float32) / 1e9:.2f}", "TFLOP/s"]]


def facts(device: torch.device) -> list[list[Cell]]:
    """Facts that the numbers depend on, name by name."""
    rows: list[list[Cell]] = [[package, _version(package)] for package in ("torch", "triton", "transformers")]
    rows.append(["largest cache", f"{cache_bytes(device) / 2**20:.0f} MiB"])
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        rows += [
            ["CUDA of PyTorch", str(torch.version.cuda)],
            ["multiprocessors", properties.multi_processor_count],
            ["compute capability", f"{properties.major}.{properties.minor}"],
        ]
        rows += card_facts()
    return rows


def card_facts() -> list[list[Cell]]:
    """The driver's facts and clocks, as nvidia-smi reads them."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [["clocks and driver", f"not readable ({type(error).__name__})"]]
    return [[name, value.strip()] for name, value in zip(QUERY.split(","), done.stdout.strip().split(","))]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
