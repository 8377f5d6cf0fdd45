"""Parts of a step as CUDA graphs: each is launched by one call, whatever trees it works on.

A captured graph repeats the same kernels on the same memory. So a part may read only tensors whose addresses stay the
same: the model, the cache, the outputs of earlier parts, and static buffers. Everything that decides *which* kernels
run belongs in its key. On a CPU parts are plain calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from entmtp.decoding.faults import is_out_of_memory
from entmtp.trees.batch import TreeBatch

Outputs = TypeVar("Outputs", bound=tuple[torch.Tensor, ...])
Part = Callable[[TreeBatch], Outputs]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CapturedGraph:
    """A captured part: ``replay`` runs it again and writes its results into ``outputs``."""

    replay: Callable[[], None]
    outputs: tuple[torch.Tensor, ...]


class GraphCapturer:
    """Captures work as CUDA graphs that share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], tuple[torch.Tensor, ...]]) -> CapturedGraph:
        """Captures ``work`` without running it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = work()
        return CapturedGraph(graph.replay, outputs)


class Graphs:
    """Runs the parts of a step. With a ``capturer``, a part that is run again is captured, once per key.

    Attributes:
        captures: number of captured parts.
        disabled_reason: why capturing was given up; None if it was not. Without it parts are plain calls.
        is_steady: whether no part was captured or ran for the first time since the last :meth:`stage_inputs`.
    """

    def __init__(self, capturer: GraphCapturer | None) -> None:
        self._capturer = capturer
        self._captured: dict[Hashable, CapturedGraph] = {}
        self._static_buffers: dict[tuple[str, torch.Size], torch.Tensor] = {}
        self._shared_buffers: dict[str, torch.Tensor] = {}
        self._warm: set[Hashable] = set()
        self._too_large: set[Hashable] = set()
        self.is_steady = True
        self.captures = 0
        self.disabled_reason: str | None = None

    @classmethod
    def on(cls, devices: Sequence[torch.device]) -> Graphs:
        """Graphs of a model on these devices, which are captured if they are one CUDA device.

        A graph belongs to one device, so copies between devices can't be captured.
        """
        captured = len(devices) == 1 and devices[0].type == "cuda"
        return cls(GraphCapturer() if captured else None)

    @property
    def active(self) -> bool:
        """Whether parts are captured."""
        return self._capturer is not None

    def stage_inputs(self, trees: TreeBatch) -> TreeBatch:
        """Copy ``trees`` into static buffers; this begins a step."""
        self.is_steady = True
        if not self.active:
            return trees
        # The batch may be a cached one, and its tensors may become the static buffers: copy them.
        nodes = self.to_static_buffer("nodes", trees.nodes.clone())
        levels = self.to_static_buffer("levels", trees.levels.clone())
        return TreeBatch(trees.topologies, trees.shape, nodes, levels)

    def to_static_buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Copy ``tensor`` to an address from which captured parts can read: one per name and shape."""
        if not self.active:
            return tensor
        buffer = self._static_buffers.setdefault((name, tensor.shape), tensor)
        return buffer if buffer is tensor else buffer.copy_(tensor)

    def to_shared_buffer(self, name: str, tensor: torch.Tensor, usual_rows: int) -> torch.Tensor:
        """Copy a large result ``[..., n]`` of a part to memory that all results of this name share.

        It is valid until the next of them. Parts call this themselves, so that a captured one writes there too. Its own
        result then is in memory that graphs reuse, so that a further captured part takes no more. The buffer has room
        for ``usual_rows`` of n numbers. It doubles for a larger result; parts that were captured before go on with the
        smaller one.
        """
        if not self.active:
            return tensor
        size, buffer = tensor.numel(), self._shared_buffers.get(name)
        if buffer is None or len(buffer) < size:
            # Never while a part is captured: a part runs as a plain call first.
            room = usual_rows * tensor.shape[-1] if buffer is None else 2 * len(buffer)
            buffer = self._shared_buffers[name] = tensor.new_empty(max(size, room))
        return buffer[:size].view(tensor.shape).copy_(tensor)

    def run(self, key: Hashable, part: Part[Outputs], trees: TreeBatch, reads: Hashable = None) -> Outputs:
        """Run a part on staged ``trees``; its outputs are valid until a part with this key runs again.

        ``reads`` is the key of an earlier part whose outputs this one reads. If that part can't be captured, the
        addresses of its outputs change with every step, so this part is not captured either.

        The first run is a plain call, which is also the warm-up that a capture needs. The second run captures: many
        combinations of trees and requests never come again, and a capture costs more than a step.
        """
        if self._capturer is None:
            return part(trees)
        if key in self._too_large or reads in self._too_large:
            return part(trees.uncached_copy())
        if (graph := self._captured.get(key)) is None:
            self.is_steady = False
            # A new batch for each run: values that one run has derived from the trees must not be reused by another.
            graph = self._capture(self._capturer, key, lambda: part(trees.uncached_copy()))
        if graph is None:
            return part(trees.uncached_copy())
        graph.replay()
        return graph.outputs  # type: ignore[return-value]

    def _capture(self, capturer: GraphCapturer, key: Hashable, work: Callable[[], Outputs]) -> CapturedGraph | None:
        """Capture ``work`` from its second run on; None if it is to be run as a plain call."""
        if key not in self._warm:
            self._warm.add(key)
            return None
        try:
            graph = capturer.capture(work)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):  # other parts and the captured ones are not affected
                self._too_large.add(key)
                _log.warning("a part of the step runs without a CUDA graph: no memory is left for it")
                return None
            self._capturer, self.disabled_reason = None, str(error).splitlines()[0]
            self._captured.clear()
            _log.warning(
                "steps run without CUDA graphs, since this model's can't be captured: %s", self.disabled_reason
            )
            return None
        self._captured[key] = graph
        self.captures += 1
        return graph
