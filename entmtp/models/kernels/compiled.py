"""The kernels of fused.cpp, compiled for this CPU at first use, and their bindings.

Neither PyTorch's nor oneDNN's product reads weights at memory bandwidth for both one row and several. The products of
packed_product.hpp do. Compilation takes some seconds once for each set of weight formats, and the library is stored in
the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from entmtp.errors import EntMTPError
from entmtp.persistent_paths import cache_folder

_SOURCE = Path(__file__).with_name("fused.cpp")
_HEADERS = sorted(_SOURCE.parent.glob("*.hpp"))
_FLAGS = (
    "-std=c++17 -O2 -ftree-vectorize -march=native -mprefer-vector-width=512 -ffp-contract=fast -fno-math-errno"
    " -fopenmp -shared -fPIC"
).split()
_COMPILE_SECONDS = 300
_COMPILERS = "c++", "g++", "clang++"
_POINTER, _INT, _FLOAT, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
_SIGNATURES = {
    "entmtp_packed_bytes": (_INT, [_INT32] + [_INT] * 2),
    "entmtp_pack": (None, [_INT32, _POINTER, _INT, _POINTER, _INT, _INT, _INT32]),
    "entmtp_dequantize": (None, [_INT32, _POINTER, _INT, _POINTER, _INT, _INT, _POINTER, _INT32]),
    "entmtp_digits": (_INT32, []),
    "entmtp_linear": (None, [_POINTER] * 4 + [_INT] * 2 + [_INT32] * 2),
    "entmtp_decode": (None, [_POINTER] * 5),
    "entmtp_draft": (None, [_POINTER] * 7),
    "entmtp_guess": (None, [_POINTER] * 2 + [_INT] + [_POINTER] * 4 + [_INT32]),
    "entmtp_project": (None, [_POINTER] * 3 + [_INT, _INT32]),
    "entmtp_append": (None, [_POINTER] * 5),
    "entmtp_defer": (None, [_POINTER] * 4),
    "entmtp_settle": (None, [_POINTER] * 4),
    "entmtp_move_rows": (None, [_POINTER]),
    "entmtp_accept": (None, [_POINTER] * 2),
    "entmtp_check_states": (None, [_POINTER, _INT, _POINTER] + [_INT] * 2),
    "entmtp_top_k": (None, [_POINTER]),
}
FORMATS = ("FLOAT32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Formats of weights, in the order of enum ``Format`` of weights.hpp; those after the first are GGUF's."""
BLOCK_FORMATS = frozenset(FORMATS[1:])


class Matrix(ctypes.Structure):
    """Struct ``Matrix`` of packed_product.hpp."""

    _fields_ = [("data", _POINTER), ("out", _INT), ("format", _INT32)]


class Layer(ctypes.Structure):
    """Struct ``Layer`` of fused.cpp: addresses of tensors, which the caller must keep alive."""

    _fields_ = [
        ("qkv", Matrix * 3),
        *((name, Matrix) for name in ("output", "gates", "values", "down")),
        *(
            (name, _POINTER)
            for name in ("input_norm", "qkv_bias", "query_norm", "key_norm", "output_bias", "middle_norm", "down_bias")
        ),
    ]


class Model(ctypes.Structure):
    """Struct ``Model`` of fused.cpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("embeddings", "layers", "norm", "embedding_norm")),
        *((name, _INT) for name in ("row_bytes", "count", "hidden", "inner", "heads", "kv_heads", "dim")),
        *((name, _FLOAT) for name in ("eps", "scaling")),
        *((name, _INT32) for name in ("format", "digits", "adds_to_normalized", "keeps_states")),
    ]


class Pass(ctypes.Structure):
    """Struct ``Pass`` of fused.cpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("tokens", "positions", "prefix", "rows", "angles", "slots", "start", "tree")),
        *((name, _POINTER) for name in ("tree_positions", "rotary", "pool", "feature_layers", "features")),
        *((name, _INT) for name in ("batch", "n", "tree_rows", "first", "last", "pool_slots", "capacity", "window")),
        ("feature_count", _INT),
        ("threads", _INT32),
    ]


class Projection(ctypes.Structure):
    """Struct ``Projection`` of pass.hpp."""

    _fields_ = [
        ("weight", Matrix),
        *((name, _POINTER) for name in ("bias", "norm")),
        *((name, _INT) for name in ("width", "groups")),
        ("eps", _FLOAT),
        ("digits", _INT32),
    ]


class Paths(ctypes.Structure):
    """Struct ``Paths`` of pass.hpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("features", "tokens", "nodes", "counts", "roots")),
        ("width", _INT),
    ]


class DraftRows(ctypes.Structure):
    """Struct ``DraftRows`` of pass.hpp."""

    _fields_ = [(name, _POINTER) for name in ("inputs", "deferred", "states", "lengths")]


class Level(ctypes.Structure):
    """Struct ``Level`` of pass.hpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("tokens", "prefix", "start", "position", "depths", "tree")),
        *((name, _INT) for name in ("rows", "depth")),
    ]


class Moves(ctypes.Structure):
    """Struct ``Moves`` of cache_rows.hpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("pool", "slots", "start", "nodes")),
        *((name, _INT) for name in ("blocks", "pool_slots", "heads", "capacity", "row_bytes", "batch", "count")),
    ]


class Verified(ctypes.Structure):
    """Struct ``Verified`` of acceptance.hpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("tokens", "parent", "real", "logits", "states")),
        *((name, _INT) for name in ("batch", "width", "depth", "vocab", "hidden")),
        ("threads", _INT32),
    ]


class Accepted(ctypes.Structure):
    """Struct ``Accepted`` of acceptance.hpp."""

    _fields_ = [(name, _POINTER) for name in ("nodes", "counts", "root", "report")]


class Guesses(ctypes.Structure):
    """Struct ``Guesses`` of top_k.hpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("logits", "vocabulary", "tokens", "log_probs")),
        *((name, _INT) for name in ("rows", "width", "count")),
        ("threads", _INT32),
    ]


@cache
def unsupported_reason(*formats: str) -> str | None:
    """Reason why this machine can't run the kernels for these formats, or None. Compiles them at the first call."""
    try:
        library(formats)
    except EntMTPError as error:
        return str(error)
    return None


_loaded: dict[frozenset[str], ctypes.CDLL] = {}


def library(formats: Iterable[str] = ()) -> ctypes.CDLL:
    """The shared library of the kernels for weights in float32 and these ``formats``, at least.

    Raises:
        EntMTPError: if there is no compiler, or it fails.
    """
    wanted = BLOCK_FORMATS & frozenset(formats)
    for known, loaded in _loaded.items():
        if wanted <= known:
            return loaded
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise EntMTPError("needs a C++ compiler, such as g++")
    try:
        loaded = ctypes.CDLL(str(_compiled(compiler, wanted)))
    except OSError as error:
        raise EntMTPError(f"can't be loaded here: {error}") from error
    for name, (result, types) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, result
    _loaded[wanted] = loaded
    return loaded


def profiled(name: str) -> AbstractContextManager[object]:
    """Name a call for PyTorch's profiler; without a profiler that would take as long as several operators."""
    return torch.profiler.record_function(name) if torch._C._autograd._profiler_enabled() else nullcontext()


def _compiled(compiler: str, formats: frozenset[str]) -> Path:
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*_FLAGS, *(f"-DENTMTP_{name}" for name in sorted(formats))]
    path = folder / f"fused-{_identity(compiler, flags)}.so"
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                unfinished = Path(temporary) / path.name
                _compile(compiler, flags, unfinished)
                unfinished.replace(path)
    return path


def _compile(compiler: str, flags: Sequence[str], target: Path) -> None:
    command = [compiler, *flags, str(_SOURCE), "-o", str(target)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        message = lines[0] if lines else error
        raise EntMTPError(f"needs a C++ compiler that works; {compiler} says: {message}") from error


def _identity(compiler: str, flags: Sequence[str]) -> str:
    """Hash of everything that the compiled code depends on.

    It includes the CPU, because machines with different instruction sets may share a home folder.
    """
    cpu = Path("/proc/cpuinfo")
    kinds = {line for line in cpu.read_text().splitlines() if line.startswith(("model name", "flags", "Features"))}
    return hashlib.sha256(
        repr(([file.read_text() for file in (_SOURCE, *_HEADERS)], flags, compiler, sorted(kinds))).encode()
    ).hexdigest()[:16]
