"""Roofline of a step: its bytes over the machine's bandwidth, its multiplications over the machine's rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entmtp.heads.base import DraftHeads
from entmtp.models.kernels.block_weight import Weight, named_weights, weight_of
from entmtp.trees.batch import TreeShape
from entmtp.trees.topology import Topology

_COPY_BYTES = {"cpu": 2**29, "cuda": 2**31}
"""A launch must take little of the time of a copy."""
_MATRIX_SIZE = {"cpu": 1536, "cuda": 8192}
_SIZES = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Machine:
    """Measured peak rates of a machine, and the size of its largest cache.

    Attributes:
        bytes_per_ms: read and written by a copy: the bandwidth of the floor.
        multiply_adds_per_ms: of a large matrix product in the step's type.
        cache_bytes: that may stay on the chip between two uses.
    """

    bytes_per_ms: float
    multiply_adds_per_ms: float
    cache_bytes: int

    @property
    def text(self) -> str:
        """The rates in the usual units."""
        return (
            f"copies {self.bytes_per_ms / 1e6:.1f} GB/s, multiplies"
            f" {2 * self.multiply_adds_per_ms / 1e9:.2f} TFLOP/s, caches {self.cache_bytes / 2**20:.0f} MiB"
        )


@dataclass(frozen=True)
class Work:
    """Least work of a step.

    Attributes:
        bytes: each weight that it multiplies by, once, and the cached keys and values that it attends to.
        again_bytes: weights that each further level of the heads reads again, as far as they exceed the chip's cache.
        multiply_adds: of the model's layers and of the heads' output layer.
    """

    bytes: int
    again_bytes: tuple[int, ...]
    multiply_adds: int

    def floors(self, machine: Machine) -> tuple[float, float]:
        """Least milliseconds of the bytes, and of the multiplications."""
        again = sum(max(0, size - machine.cache_bytes) for size in self.again_bytes)
        return (self.bytes + again) / machine.bytes_per_ms, self.multiply_adds / machine.multiply_adds_per_ms


def step_work(model: Any, heads: DraftHeads, topology: Topology, batch: int, cached_values: int) -> Work:
    """The work of a step of ``batch`` requests with this tree each.

    ``model`` is as transformers made it; ``cached_values`` is the number of cached values of all requests.
    """
    tree, depth = TreeShape.of([topology] * batch), topology.max_depth
    tokens = batch * (1 + topology.nodes)
    multiplied = multiplied_weights(model)
    weights = sum(weight.numel() for weight in multiplied)
    layers = heads.output_layers
    output = layers[0].numel() if depth else 0
    borrowed = heads.output_weight.numel() > 0  # the model's output layer, which is no parameter of the heads
    hidden = count(heads) - (0 if borrowed else sum(layer.numel() for layer in layers))
    # Each level runs about an equal share of the hidden layers. Levels below the tree are not run.
    drafting = hidden * depth // heads.num_heads + output * min(depth, len(layers))
    # Medusa's levels are one product. Hydra's levels run one after another, each with a product of its own.
    one_by_one = heads.kind == "hydra"
    ranked = sum(tree.parents) if one_by_one else batch * depth
    size = model.dtype.itemsize
    return Work(
        bytes=sum(weight.nbytes for weight in multiplied) + size * (drafting + cached_values),
        again_bytes=(size * output,) * (depth - 1) if one_by_one and len(layers) == 1 else (),
        multiply_adds=tokens * (weights + cached_values // batch) + ranked * output,
    )


def count(module: torch.nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(weight.numel() for weight in module.parameters())


def multiplied_weights(model: Any) -> list[Weight]:
    """Weights that a step multiplies by: not an untied embedding table, which it only indexes."""
    embedding, output = (weight_of(layer) for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    return [weight for _, weight in named_weights(model) if weight is output or weight is not embedding]


@torch.inference_mode()
def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure copies and products of matrices that exceed every cache.

    Matrices are random: a GPU multiplies equal numbers faster, as it takes less power.
    """
    size = _COPY_BYTES[device.type]
    source = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy_ms = best_ms(lambda: target.copy_(source), device)
    return Machine(2 * size / copy_ms, multiply_adds_per_ms(device, dtype), cache_bytes(device))


@torch.inference_mode()
def multiply_adds_per_ms(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a product of large random matrices."""
    size = _MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return size**3 / best_ms(lambda: left @ right, device)


@torch.inference_mode()
def read_bytes_per_ms(device: torch.device) -> float:
    """Rate of a sum over numbers that exceed every cache, which reads and writes nothing."""
    size = _COPY_BYTES[device.type]
    source = torch.ones(size // torch.float32.itemsize, device=device)
    return size / best_ms(source.sum, device)


def cache_bytes(device: torch.device) -> int:
    """Size of the largest cache that the device reports; 0 where it reports none."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * _SIZES[size[-1]] for size in sizes), default=0)


def best_ms(work: Callable[[], object], device: torch.device, repetitions: int = 10) -> float:
    """Milliseconds of the fastest of several runs."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(repetitions):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append((time.perf_counter() - began) * 1e3)
    return min(times)
