"""A second device: a GPU where there is one, or else a device of these tests' making.

Its tensors have values, and what mixes them with others' fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_REAL = torch.cuda.is_available()
if not _REAL:
    # PyTorch's place for devices that it does not know; a process has one.
    _setup_privateuseone_for_python_backend("elsewhere")
ELSEWHERE = torch.device("cuda" if _REAL else "elsewhere", 0)

_CARRIERS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Placed(torch.Tensor):
    """A tensor that says that it lies on :data:`ELSEWHERE`; ``value`` is what it holds."""

    value: torch.Tensor

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> Placed:
        placed: Placed = torch.Tensor._make_wrapper_subclass(
            cls, value.size(), strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        placed.value = value
        return placed

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Placed({self.value!r})"


@contextmanager
def second_device() -> Iterator[None]:
    """While it lasts, tensors can be made on :data:`ELSEWHERE` and be carried there."""
    with ExitStack() as stack:
        if not _REAL:
            stack.enter_context(_Literals())
            stack.enter_context(_Operations())
        yield


class _Literals(TorchFunctionMode):
    """``torch.tensor`` is no operation: what it makes has to be carried."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == ELSEWHERE:
            return func(*args, **(kwargs | {"device": "cpu"})).to(ELSEWHERE)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the values, as real devices would: all of its tensors must lie on one."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _Operations():  # its parts come by one by one
            return func.decompose(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    places = {tensor.device for tensor in tensors if tensor.ndim or isinstance(tensor, Placed)}
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = kwargs | {"device": "cpu"}
    assert len(places) <= 1 or func in _CARRIERS, f"{func} was given tensors on {places}"
    made = func(*tree_map(_value, args), **tree_map(_value, kwargs))
    if func._schema.is_mutable and func._schema.returns:
        return args[0]  # in place
    place = torch.device(asked) if asked is not None else next(iter(places), torch.device("cpu"))
    if place != ELSEWHERE:
        return made
    # A view of a tensor from before inference mode is none of inference mode, as with other tensors.
    of_inference = torch.is_inference_mode_enabled() and not (func.is_view and not tensors[0].is_inference())
    with torch.inference_mode(of_inference):
        return tree_map(_place, made)


def _value(item: Any) -> Any:
    return item.value if isinstance(item, Placed) else item


def _place(item: Any) -> Any:
    return Placed(item) if isinstance(item, torch.Tensor) else item
