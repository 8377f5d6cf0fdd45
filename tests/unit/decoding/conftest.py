"""A small backbone, and heads that guess right now and then."""

import pytest

from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from tests.helpers.small_cases import small_backbone, small_heads


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone()


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> DraftHeads:
    return small_heads("hydra", backbone)
