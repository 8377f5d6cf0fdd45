"""Captures that run out of memory: the part runs as a plain call, and other parts are still captured."""

from __future__ import annotations

from collections.abc import Callable

import torch

from entmtp.decoding.graphs import CapturedGraph, Graphs
from entmtp.decoding.request import Request
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.settings import SamplingParams
from tests.helpers.faulty_engines import check, engine_of, run, serve
from tests.helpers.small_cases import small_prompt
from tests.helpers.taped_graphs import Taped
from tests.helpers.tiny_models import greedy


def test_parts_that_read_what_could_not_be_captured_are_not_captured(backbone: Backbone, heads: DraftHeads) -> None:
    class Small(Taped):
        """Runs out of memory when the forward pass is captured."""

        def capture(self, work: Callable[[], tuple[torch.Tensor, ...]]) -> CapturedGraph:
            recording = super().capture(work)
            if any(output.shape[-1] == backbone.hidden_size for output in recording.outputs):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return recording

    engine = engine_of(backbone, heads, "static")
    graphs = engine.runner.state.graphs = Graphs(Small())
    done = engine.submit(Request("one", small_prompt(5), SamplingParams(temperature=0.0, max_tokens=24)))
    run(engine)
    assert done.tokens == greedy(backbone.model, small_prompt(5), 24)
    plain = engine_of(backbone, heads, "static")
    right = plain.submit(Request("one", small_prompt(5), SamplingParams(temperature=0.0, max_tokens=24)))
    run(plain)
    assert [step.gained for step in done.steps] == [step.gained for step in right.steps]
    assert graphs.captures > 0  # heads fill trees in a graph
    assert graphs.is_steady


def test_a_capture_that_runs_out_of_memory_leaves_graphs_on(backbone: Backbone, heads: DraftHeads) -> None:
    expected = serve(engine_of(backbone, heads, "sequence", captured=True))
    engine = engine_of(backbone, heads, "sequence")

    class Small(Taped):
        failed = 0

        def capture(self, work: Callable[[], tuple[torch.Tensor, ...]]) -> CapturedGraph:
            if self.failed < 3:
                self.failed += 1
                raise RuntimeError("CUDA error: out of memory")
            return super().capture(work)

    graphs = engine.runner.state.graphs = Graphs(Small())
    assert check(engine, serve(engine), expected, "capture") == 0
    assert graphs.disabled_reason is None
    assert graphs.active
    assert graphs.captures > 0
    assert len(graphs._too_large) == 3
