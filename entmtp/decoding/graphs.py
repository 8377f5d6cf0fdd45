"""Parts of a step as CUDA graphs: launched by one call each, whatever trees they are about.

A captured graph repeats the same kernels on the same memory. So a part may read only tensors that stay where they are
(model, cache, the outputs of earlier parts, the trees' numbers in a fixed buffer), and everything that decides *which*
kernels run belongs in its key. On a CPU parts are plain calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import torch

from entmtp.decoding.faults import is_out_of_memory
from entmtp.trees.batch import TreeBatch

Outputs = TypeVar("Outputs", bound=tuple[torch.Tensor, ...])
Part = Callable[[TreeBatch], Outputs]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """A captured part: ``replay`` runs it again, and its results appear in ``outputs``."""

    replay: Callable[[], None]
    outputs: tuple[torch.Tensor, ...]


class Recorder:
    """Captures work as CUDA graphs that share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], tuple[torch.Tensor, ...]]) -> Recording:
        """Captures ``work`` without running it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = work()
        return Recording(graph.replay, outputs)


class Graphs:
    """Runs the parts of a step; captures each that comes again, once per key, where there is a ``recorder``.

    Attributes:
        captures: how many times a part was captured.
        refused: why capturing was given up, if it was; parts are plain calls since.
        settled: whether all parts since the last :meth:`load` cost what they always will.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._recordings: dict[Hashable, Recording] = {}
        self._held: dict[tuple[str, torch.Size], torch.Tensor] = {}
        self._warm: set[Hashable] = set()
        self._too_large: set[Hashable] = set()
        self.settled = True
        self.captures = 0
        self.refused: str | None = None

    @classmethod
    def on(cls, device: torch.device) -> Graphs:
        """Graphs where the device has them."""
        return cls(Recorder() if device.type == "cuda" else None)

    @property
    def active(self) -> bool:
        """Whether parts are captured."""
        return self._recorder is not None

    def load(self, trees: TreeBatch) -> TreeBatch:
        """``trees`` in the places from which captured parts read."""
        self.settled = True
        if not self.active:
            return trees
        # Copies, since a batch that comes again is the same one.
        nodes, levels = self.hold("nodes", trees.nodes.clone()), self.hold("levels", trees.levels.clone())
        return TreeBatch(trees.topologies, trees.shape, nodes, levels)

    def hold(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` in a place from which captured parts can read: one for each name and shape."""
        if not self.active:
            return tensor
        held = self._held.setdefault((name, tensor.shape), tensor)
        return held if held is tensor else held.copy_(tensor)

    def run(self, key: Hashable, part: Part[Outputs], trees: TreeBatch, reads: Hashable = None) -> Outputs:
        """The part's outputs for loaded ``trees``; they stay until a part of this key runs again.

        ``reads`` is the key of an earlier part whose outputs it reads where they lie. They lie elsewhere in each step
        if that part can't be captured, and then this one isn't either.

        The first time it runs as it is, which is also the warm-up that a capture needs: many a choice of trees and
        requests never comes again, and a capture costs more than a step. The second time it is recorded.
        """
        if self._recorder is None:
            return part(trees)
        if key in self._too_large or reads in self._too_large:
            return part(trees.uncached_copy())
        if (recording := self._recordings.get(key)) is None:
            self.settled = False
            # Anew for each run: what one run has derived from the numbers, another must derive from other numbers.
            recording = self._recorded(self._recorder, key, lambda: part(trees.uncached_copy()))
        if recording is None:
            return part(trees.uncached_copy())
        recording.replay()
        return recording.outputs  # type: ignore[return-value]

    def _recorded(self, recorder: Recorder, key: Hashable, work: Callable[[], Outputs]) -> Recording | None:
        if key not in self._warm:
            self._warm.add(key)
            return None
        try:
            recording = recorder.record(work)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):  # says nothing of other parts, nor of what is captured already
                self._too_large.add(key)
                _log.warning("a part of the step runs without a CUDA graph: no memory is left for it")
                return None
            self._recorder, self.refused = None, str(error).splitlines()[0]
            self._recordings.clear()
            _log.warning("steps run without CUDA graphs, since this model's can't be captured: %s", self.refused)
            return None
        self._recordings[key] = recording
        self.captures += 1
        return recording
