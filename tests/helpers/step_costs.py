"""Fixed step costs of the bundled model: tests measure none, and trees do not depend on how busy a machine is."""

from __future__ import annotations

import os

import torch
from filelock import FileLock

from entmtp.decoding.measure_cost import CONTEXTS, NODES, cost_key
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads, load_heads
from entmtp.persistent_paths import cache_folder
from entmtp.policies.cost_cache import cost_path, write_cost
from entmtp.policies.step_cost import CostTable, StepCost
from tests.helpers.bundled_backbone import bundled_backbone

BATCHES = (1, 2, 4, 8)


def write_step_costs() -> None:
    """Write them into the cache folder, for each number of threads of this machine, unless another process has."""
    folder = cache_folder() / "costs"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "bundled.lock"):
        if (written := folder / "bundled").exists():
            return
        backbone = bundled_backbone()
        heads = [load_heads(bundled_heads(kind), backbone) for kind in BUNDLED_KINDS]
        before = torch.get_num_threads()
        for threads in range(1, (os.cpu_count() or 1) + 1):
            torch.set_num_threads(threads)  # it is part of the hardware's name
            for one in heads:
                parts = cost_key(backbone, one)
                for batch in BATCHES:
                    write_cost(cost_path(folder.parent, *parts, batch), _cost(parts[0], one.num_heads, batch))
        torch.set_num_threads(before)
        written.touch()


def _cost(hardware: str, levels: int, batch: int) -> CostTable:
    """Costs of a CPU: plain decoding of one request takes 12 ms, and its first nodes least each."""

    def verify_ms(nodes: int, context: int) -> float:
        tokens = batch * (1 + nodes)
        return 12.0 + 0.6 * min(tokens - 1, 16) + 0.8 * max(0, tokens - 17) + 0.001 * batch * context

    drafts = [0.3 * batch * depth for depth in range(1, levels + 1)]
    costs = [
        StepCost(
            nodes=list(NODES),
            verify_ms=[verify_ms(nodes, context) for nodes in NODES],
            narrow_draft_ms=drafts,
            wide_draft_ms=[2 * ms for ms in drafts],
            wide_nodes=NODES[-1],
            hardware=hardware,
        )
        for context in CONTEXTS
    ]
    return CostTable(contexts=list(CONTEXTS), costs=costs)
