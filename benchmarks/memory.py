#!/usr/bin/env python3
"""Whether an engine takes the memory that was computed for it, and no more after thousands of requests.

python -m benchmarks.memory --requests 2000
"""

from __future__ import annotations

from typing import Annotated

import psutil
import torch
import typer

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.decoding.engine import Engine
from entmtp.decoding.measure_cost import machine_cost
from entmtp.decoding.request import Request
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.loading import policy_at_costs
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import load_model
from entmtp.persistent_paths import cache_folder
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.suites import MIXED
from entmtp.trees.bank import bundled_bank, load_bank

SIZES = ((1, 512), (1, 2048), (4, 512), (4, 2048), (8, 2048))
MIB = 2**20


def main(
    requests: Annotated[int, typer.Option(min=1, help="requests that one engine serves")] = 2000,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Print the process's memory against slots and context, and along the requests of one engine."""
    with plain_errors("memory", "nothing was recorded"):
        model, _ = load_model("bundled", device="cuda" if torch.cuda.is_available() else "cpu")
        backbone = build_backbone(model)
        heads = load_heads(bundled_heads("hydra"), backbone).draft_only()
        bank = load_bank(bundled_bank(MIXED, "hydra"))
        cost = machine_cost(backbone, heads, cache_folder(), print, 8)
        policy = policy_at_costs("entmtp-dynamic", heads, bank, cost, print)
        columns = ["slots", "context", "cache as computed, MiB", "grown by, MiB"]
        sizes = Table(title="memory of an engine", columns=columns, rows=_sizes(backbone))
        settings = EngineSettings(slots=8, context=256, prefill_tokens=512, max_waiting=requests)
        engine = Engine(backbone, heads, policy, settings)
        curve = Table(title="memory along the requests", columns=["requests", "MiB"], rows=_curve(engine, requests))
        notes = ["Memory is the process's resident set; on a GPU what PyTorch has allocated there."]
        title = "Memory of the engine"
        deliver(
            make_record("memory", title, hardware_name(backbone.device), [sizes, curve], notes), record, uncommitted
        )


def _used(device: torch.device) -> float:
    used = torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    return used / MIB


def _sizes(backbone: Backbone) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for slots, context in SIZES:
        before = _used(backbone.device)
        cache = backbone.new_cache(slots, context)
        rows.append([slots, context, f"{cache.bytes / MIB:.1f}", f"{_used(backbone.device) - before:.1f}"])
        del cache
    return rows


def _curve(engine: Engine, requests: int) -> list[list[Cell]]:
    """Memory after every twentieth part of the requests, each with a prompt of its own."""
    vocab_size, device = engine.backbone.vocab_size, engine.backbone.device
    params = SamplingParams(temperature=0.8, seed=0, max_tokens=8, ignore_eos=True)
    rows: list[list[Cell]] = [[0, f"{_used(device):.1f}"]]
    ended, part = 0, max(1, requests // 20)
    for number in range(requests):
        prompt = [(7 * number + 13 * at) % vocab_size for at in range(8 + number % 24)]
        engine.submit(Request(str(number), prompt, params))
    while not engine.idle:
        before = ended
        ended += sum(progress.finish_reason is not None for progress in engine.step())
        if ended // part > before // part:
            rows.append([ended, f"{_used(device):.1f}"])
    return rows


if __name__ == "__main__":
    typer.run(main)
