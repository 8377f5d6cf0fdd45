"""Classification of errors in a step: out of memory or not, and the message for the request that they end."""

from __future__ import annotations

import torch

from entmtp.errors import EntMTPError

_OUT_OF_MEMORY = (
    "can't allocate memory",  # PyTorch's allocator for CPUs, which raises a plain RuntimeError
    "not enough memory",
    "out of memory",  # CUDA's own calls, such as the launch of a graph
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


class NonFiniteLogitsError(EntMTPError):
    """Raised if the model's logits for a text are NaN."""

    def __init__(self) -> None:
        super().__init__("model: its logits are not numbers for this text; it or its weights are broken")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device ran out of memory. PyTorch has no exception type for it on a CPU.

    An error that was raised while such a one was handled counts too: a capture that runs out of memory raises another
    one as it ends.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def description(error: BaseException, doing: str) -> str:
    """Error message for the user of a request that failed while ``doing`` something; it contains none of its text."""
    if is_out_of_memory(error):
        return "engine: out of memory; ask for less at once, or lower slots or context"
    if isinstance(error, EntMTPError):
        return str(error)
    return f"request: {doing} failed ({type(error).__name__}); other parameters may avoid it, the engine's log has more"
