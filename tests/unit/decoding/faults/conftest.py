"""A backbone without fused kernels, and heads for it."""

from __future__ import annotations

import pytest

from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from tests.helpers.small_cases import small_backbone, small_heads


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Backbone without fused kernels, so that a fault can be injected at each operator."""
    return small_backbone(kernels="eager", num_hidden_layers=1)


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> DraftHeads:
    return small_heads("hydra", backbone)
