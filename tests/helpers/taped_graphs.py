"""CUDA graphs' rules on a CPU: work is captured operator by operator, and a replay repeats them on the same memory.

As with a captured graph, Python does not run again at a replay, addresses stay and a capture leaves no trace in the
state. Whatever makes the host wait for the device, or copies numbers to it, is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from entmtp.decoding.graphs import CapturedGraph, GraphCapturer

HOST_SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")


class HostSync(RuntimeError):
    """Raised if a captured part needs a value on the host."""


class _Tape(TorchDispatchMode):
    """Records each operator with its operands and results, and the former values of those that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name.startswith(HOST_SYNCS) or _has_boolean_index(name, args):
            raise HostSync(f"operation not permitted while capturing: {name}")
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        results = func(*args, **kwargs)
        outputs = _tensors(results)
        if func._schema.is_mutable or not _are_views(outputs, (args, kwargs)):
            self.calls.append((func, args, kwargs, outputs))
        return results


def _are_views(outputs: list[torch.Tensor], operands: Any) -> bool:
    """Whether the results of an operator that writes nothing lie in its operands' memory, so that it does nothing."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in _tensors(operands)}
    return all(output.untyped_storage().data_ptr() in memory for output in outputs)


def _has_boolean_index(name: str, args: Any) -> bool:
    indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


class Taped(GraphCapturer):
    """Capturer that needs no GPU."""

    def __init__(self) -> None:
        """Leave out the memory pool, which only a GPU has."""

    def capture(self, work: Callable[[], tuple[torch.Tensor, ...]]) -> CapturedGraph:
        """Runs ``work`` on a tape, then undoes what it wrote."""
        tape = _Tape()
        try:
            with tape:
                outputs = work()
        finally:
            for tensor, old in reversed(tape.before):
                tensor.copy_(old)
        for output in outputs:
            output.copy_(torch.full_like(output, 77))  # a capture computes nothing: a read before the replay shows this
        return CapturedGraph(lambda: _replay(tape.calls), outputs)


def _replay(calls: list[tuple[Any, Any, Any, list[torch.Tensor]]]) -> None:
    for func, args, kwargs, outputs in calls:
        for output, fresh in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
            if output.data_ptr() != fresh.data_ptr():
                output.copy_(fresh)


def _tensors(results: Any) -> list[torch.Tensor]:
    if isinstance(results, torch.Tensor):
        return [results]
    return [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
