"""The states that draft heads receive of the model's features: norms and a product in one call."""

from __future__ import annotations

from ctypes import byref

import torch

from entmtp.models.kernels.block_weight import Weight
from entmtp.models.kernels.compiled import Projection, library, profiled
from entmtp.models.kernels.draft_weight import draft_weight
from entmtp.models.kernels.fused_linear import DraftLinear
from entmtp.models.kernels.packed_weight import pack


class FusedProjection:
    """A linear layer of draft heads after a norm of each of ``groups`` equal parts of the features.

    Attributes:
        structure: addresses and sizes, for the kernels.
    """

    def __init__(
        self, weight: Weight, bias: torch.Tensor | None, norm: torch.Tensor | None, groups: int, eps: float
    ) -> None:
        """Pack the weight ``[hidden_size, width]``; ``norm [width]`` is None where the features have none."""
        packed = pack(draft_weight(weight))
        vectors = {name: vector.detach().contiguous() for name, vector in (("bias", bias), ("norm", norm))
                   if vector is not None}  # fmt: skip
        self._memory = packed, vectors  # the structure has the addresses alone
        self._library = library([packed.format])
        self.structure = Projection(
            weight=packed.matrix,
            width=weight.shape[1],
            groups=groups,
            eps=eps,
            digits=DraftLinear.digits,
            **{name: vector.data_ptr() for name, vector in vectors.items()},
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """States ``[..., hidden_size]`` of features ``[..., width]``."""
        features = features.contiguous()
        width = self.structure.width
        states = features.new_empty(*features.shape[:-1], self.structure.weight.out)
        with profiled("entmtp::project"):
            self._library.entmtp_project(
                byref(self.structure),
                features.data_ptr(),
                states.data_ptr(),
                features.numel() // width,
                torch.get_num_threads(),
            )
        return states
