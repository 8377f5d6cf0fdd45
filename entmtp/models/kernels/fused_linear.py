"""Linear layers with the products of packed_product.hpp, and the bindings of fused.cpp.

Neither PyTorch's nor oneDNN's product reads weights at memory bandwidth for both one row and several. The products of
packed_product.hpp do. Both files are compiled for this CPU at first use. Compilation takes two seconds once, and the
library is stored in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch.profiler import record_function

from entmtp.errors import EntMTPError
from entmtp.models.kernels.packed_linear import InferenceLinear
from entmtp.models.loading.bundled import cache_folder

_SOURCE = Path(__file__).with_name("fused.cpp")
_HEADER = _SOURCE.with_name("packed_product.hpp")
_FLAGS = (
    "-std=c++17 -O3 -march=native -mprefer-vector-width=512 -ffp-contract=fast -fno-math-errno -fopenmp -shared -fPIC"
).split()
_COMPILE_SECONDS = 300
_COMPILERS = "c++", "g++", "clang++"
_INT8_MAX = 127
_SMALLEST_SCALE = 1e-12
_POINTER, _INT, _FLOAT, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES = {
    "entmtp_pack": [_POINTER] * 3 + [_INT] * 2 + [_THREADS],
    "entmtp_quantize": [_POINTER] * 3 + [_INT] * 2 + [_THREADS],
    "entmtp_linear": [_POINTER] * 4 + [_INT] * 3 + [_THREADS],
    "entmtp_int8_linear": [_POINTER] * 5 + [_INT] * 3 + [_THREADS],
    "entmtp_layers": [_POINTER, _INT] + [_POINTER] * 3,
}
LAYER_TENSORS = (
    "input_norm qkv qkv_bias query_norm key_norm output output_bias middle_norm gated down down_bias"
).split()


@cache
def unsupported_reason() -> str | None:
    """Reason why this machine can't run the kernels, or None. Compiles them at the first call."""
    try:
        library()
    except EntMTPError as error:
        return str(error)
    return None


@cache
def library() -> ctypes.CDLL:
    """The shared library of the compiled kernels.

    Raises:
        EntMTPError: if there is no compiler, or it fails.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise EntMTPError("needs a C++ compiler, such as g++")
    try:
        path = _compiled(compiler)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise EntMTPError(f"can't be loaded here: {error}") from error
    for name, types in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, None
    return loaded


def _compiled(compiler: str) -> Path:
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fused-{_identity(compiler)}.so"
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                unfinished = Path(temporary) / path.name
                _compile(compiler, unfinished)
                unfinished.replace(path)
    return path


def _compile(compiler: str, target: Path) -> None:
    command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(target)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        message = lines[0] if lines else error
        raise EntMTPError(f"needs a C++ compiler that works; {compiler} says: {message}") from error


def _identity(compiler: str) -> str:
    """Hash of everything that the compiled code depends on.

    It includes the CPU, because machines with different instruction sets may share a home folder.
    """
    cpu = Path("/proc/cpuinfo")
    kinds = {line for line in cpu.read_text().splitlines() if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256(
        repr((_SOURCE.read_text(), _HEADER.read_text(), _FLAGS, compiler, sorted(kinds))).encode()
    ).hexdigest()[:16]


class _CompiledLinear(InferenceLinear):
    """A linear layer on float32 states whose product is a function of :func:`library`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(None if bias is None else bias.detach().contiguous())
        self._out, self._in = weight.shape

    def _product(self, kernel: str, states: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """Call ``kernel`` with the states, its weights and the bias: ``[..., in] -> [..., out]``."""
        states = states.contiguous()
        product = states.new_empty(*states.shape[:-1], self._out)
        with record_function("entmtp::linear"):
            getattr(library(), kernel)(
                states.data_ptr(),
                *(weight.data_ptr() for weight in weights),
                None if self.bias is None else self.bias.data_ptr(),
                product.data_ptr(),
                states.numel() // self._in,
                self._out,
                self._in,
                torch.get_num_threads(),
            )
        return product


class FusedLinear(_CompiledLinear):
    """A float32 linear layer that reads its weight at memory bandwidth, for one row and for several."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._packed = pack_weight(weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        return self._product("entmtp_linear", states, self._packed)


class Int8WeightLinear(_CompiledLinear):
    """A linear layer with an int8 weight and a scale per output; states and sums are float32.

    The states aren't rounded. So states that differ by little have products that differ by little.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias)
        self._scale = row_scale(weight.detach())[:, 0].contiguous()
        float_weight = pack_weight(weight)
        self._quantized = torch.empty(len(float_weight), dtype=torch.int8)
        library().entmtp_quantize(
            float_weight.data_ptr(),
            self._scale.data_ptr(),
            self._quantized.data_ptr(),
            self._out,
            self._in,
            torch.get_num_threads(),
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., out]``."""
        return self._product("entmtp_int8_linear", states, self._quantized, self._scale)


def row_scale(weight: torch.Tensor) -> torch.Tensor:
    """Size ``[out, 1]`` of an int8 step in each row of ``weight [out, in]``: the largest value is 127 steps."""
    return weight.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST_SCALE) / _INT8_MAX


def pack_weight(weight: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
    """Pack a float32 weight ``[out, in]`` into the order in which the kernel reads it.

    With ``values [out, in]`` the result is for a gated product, ``silu(weight x) * (values x)``.
    """
    out, width = weight.shape
    panel = library().entmtp_panel()
    panels = -(-out // panel) if values is None else -(-out // (panel // 2))
    result = torch.empty(panels * panel * width)
    weight = weight.detach().contiguous()
    values = None if values is None else values.detach().contiguous()
    library().entmtp_pack(
        weight.data_ptr(),
        None if values is None else values.data_ptr(),
        result.data_ptr(),
        out,
        width,
        torch.get_num_threads(),
    )
    return result


class Layer(ctypes.Structure):
    """Struct ``Layer`` of fused.cpp: addresses of tensors, which the caller must keep alive."""

    _fields_ = [(name, _POINTER) for name in LAYER_TENSORS]


class Sizes(ctypes.Structure):
    """Struct ``Sizes`` of fused.cpp."""

    _fields_ = [
        *((name, _FLOAT) for name in ("eps", "scaling")),
        *((name, _INT) for name in ("hidden", "inner", "heads", "kv_heads", "dim")),
    ]


class Pass(ctypes.Structure):
    """Struct ``Pass`` of fused.cpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("cos", "sin", "mask", "slots", "rows", "pool")),
        *((name, _INT) for name in ("batch", "n", "mask_rows", "first", "last", "pool_slots", "capacity")),
        ("threads", _THREADS),
    ]
