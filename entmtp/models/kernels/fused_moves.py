"""Moves of cache rows in one call, instead of a gather and a scatter of all layers' rows."""

from __future__ import annotations

from ctypes import byref

import torch

from entmtp.models.kernels.compiled import Moves, library, profiled


def move_rows(pool: torch.Tensor, slots: torch.Tensor, start: torch.Tensor, nodes: torch.Tensor) -> None:
    """Move rows on a CPU, as :func:`entmtp.models.cache.move_rows` does."""
    slots, start, nodes = slots.contiguous(), start.contiguous(), nodes.contiguous()
    moves = Moves(
        pool=pool.data_ptr(),
        slots=slots.data_ptr(),
        start=start.data_ptr(),
        nodes=nodes.data_ptr(),
        blocks=pool.shape[0],
        pool_slots=pool.shape[1],
        heads=pool.shape[2],
        capacity=pool.shape[3],
        row_bytes=pool.shape[4] * pool.element_size(),
        batch=nodes.shape[0],
        count=nodes.shape[1],
    )
    with profiled("entmtp::move_rows"):
        library().entmtp_move_rows(byref(moves))
