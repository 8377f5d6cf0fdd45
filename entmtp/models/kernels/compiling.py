"""The decoder as one compiled graph, for every tree and every context length.

A pass is thousands of small operators around a few large products. Compilation fuses the small operators into a few
loops. Sizes are symbolic, so that there is one graph for a single token and one for all trees. PyTorch caches compiled
code on disk: compilation takes minutes the first time and seconds in later processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch

from entmtp.models.kernels.packed_linear import PackedLinear

_library = torch.library.Library("entmtp", "DEF")
_library.define("packed_linear(Tensor states, Tensor weight, Tensor? bias, int rows) -> Tensor")


def _multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


def _shape_only(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> torch.Tensor:
    return states.new_empty(*states.shape[:-1], rows)


for _key in ("CPU", "MkldnnCPU"):
    _library.impl("packed_linear", _multiply, _key)
torch.library.register_fake("entmtp::packed_linear", _shape_only, lib=_library)


class OpaquePackedLinear(PackedLinear):
    """A packed layer that is one opaque operator: the compiler only handles packed weights that it packed itself."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._rows = weight.shape[0]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        product: torch.Tensor = torch.ops.entmtp.packed_linear.default(states, self._packed, self.bias, self._rows)
        return product


def compiled(decode: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``decode`` as a graph, compiled at its first call."""
    graph: Callable[..., torch.Tensor] = torch.compile(decode, fullgraph=True, dynamic=True)
    return graph


NO_COMPILER = "needs a C++ compiler, such as g++"


def find_compiler() -> str | None:
    """Name of the C++ compiler; None if this machine has none."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
