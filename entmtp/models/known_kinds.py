"""Kinds of models that compute exactly what Llama's code does, so that their parts can be run without their code."""

from __future__ import annotations

from torch import nn

KINDS = "Llama", "Mistral", "Qwen2", "Qwen3"


def is_known(module: nn.Module, part: str) -> bool:
    """Whether a module is transformers' own ``part`` of a known kind, with neither hooks nor another forward.

    Kinds go by name, because importing the code of every model would take longer than loading one.
    """
    kind = type(module)
    is_own = kind.__module__.startswith("transformers.models.") and kind.__name__ in {f"{each}{part}" for each in KINDS}
    return is_own and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
