"""A tiny backbone and heads whose every weight is random, so that no term is zero by its starting value."""

import pytest

from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import KINDS
from entmtp.models.backbone import Backbone
from tests.tiny import random_heads, tiny_model


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return Backbone(tiny_model("llama"))


@pytest.fixture(params=sorted(KINDS))
def heads(request: pytest.FixtureRequest, backbone: Backbone) -> DraftHeads:
    return random_heads(request.param, backbone).attach(backbone)
