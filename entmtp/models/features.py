"""Inputs of a decoder's layers in transformers' code, copied by hooks while a pass runs.

transformers' own ``output_hidden_states`` stores those of all layers, and leaves its hooks in the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from entmtp.errors import EntMTPError


def decoder_layers(decoder: nn.Module, config: Any) -> nn.ModuleList:
    """The layers of ``decoder``, whose ``config`` says how many there are.

    They go by their number, since their name differs between models. A list inside of another, such as a layer's
    experts, is none of them.

    Raises:
        EntMTPError: if no list, or more than one, can be theirs.
    """
    lists = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    found = [lists[name] for name in outer if len(lists[name]) == config.num_hidden_layers]
    if len(found) != 1:
        raise EntMTPError(
            f"feature_layers: model type '{config.model_type}' has {len(found)} lists of {config.num_hidden_layers}"
            " modules where one of decoder layers is needed; use heads that read the final decoder state"
        )
    return found[0]


class FeatureBuffer:
    """Memory for the states that enter some layers in one pass.

    They are copied when a layer is called, since later operations may write into them.

    Attributes:
        features: ``[..., layers * hidden_size]`` the states, layer after layer.
    """

    def __init__(self, layers: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Allocate memory for states of this ``shape [..., hidden_size]``."""
        self._layers = layers
        self._missing = set(layers)
        self.features = torch.empty(*shape[:-1], len(layers) * shape[-1], dtype=dtype, device=device)
        self._parts = self.features.split(shape[-1], dim=-1)

    @contextmanager
    def filled_by(self, modules: nn.ModuleList) -> Iterator[None]:
        """Fill the memory by the pass that is run meanwhile through all layers, ``modules``; no other pass may run.

        Raises:
            EntMTPError: if the pass has not called a layer.
        """
        with ExitStack() as hooks:
            for part, layer in zip(self._parts, self._layers, strict=True):
                copy_input = partial(self._copy_input, layer, part)
                hooks.callback(modules[layer].register_forward_pre_hook(copy_input, with_kwargs=True).remove)
            yield
        if self._missing:
            raise EntMTPError(
                f"feature_layers: the model does not call its layer {min(self._missing)};"
                " use heads that read the final decoder state"
            )

    def _copy_input(
        self,
        layer: int,
        part: torch.Tensor,
        module: nn.Module,
        args: tuple[torch.Tensor, ...],
        options: Mapping[str, Any],
    ) -> None:
        part.copy_(args[0] if args else options["hidden_states"])
        self._missing.discard(layer)
