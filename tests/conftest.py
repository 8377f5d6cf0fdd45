"""Fixtures that several test files share."""

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tests must not depend on a network, nor wait for one: only what lies on this machine is asked for.
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no fault of the code: no property is judged by its time.
settings.register_profile("untimed", settings(deadline=None))
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bundled() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The bundled model in float32 and its tokenizer, loaded once for the whole run; treat both as read-only."""
    from entmtp.models.loading.load import load_model

    return load_model("bundled")
