"""The bundled model, loaded and tested once for all engines of a process: that takes longer than a short answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entmtp import loading
from entmtp.models.backbone import Backbone
from entmtp.models.bare_model import BareModel
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import load_weights


@cache
def _loaded() -> tuple[BareModel | PreTrainedModel, PreTrainedTokenizerBase, Backbone]:
    model, tokenizer = load_weights("bundled")
    return model, tokenizer, build_backbone(model)


def bundled_backbone() -> Backbone:
    """The backbone, which engines share: each has a cache of its own."""
    return _loaded()[2]


@contextmanager
def loaded_once() -> Iterator[None]:
    """Give every method that is loaded here the same model and backbone."""
    model, tokenizer, backbone = _loaded()

    def load(name: str, **options: Any) -> tuple[BareModel | PreTrainedModel, PreTrainedTokenizerBase]:
        assert (name, options) == ("bundled", {"dtype": "float32", "device": "cpu"})
        return model, tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_weights", load)
        patch.setattr(loading, "build_backbone", lambda given, kernels: backbone)
        yield
