"""Fixtures of a small backbone and of heads for it; a test module has those that it imports."""

import pytest
from transformers import PreTrainedModel

from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from tests.helpers.small_cases import small_backbone, small_heads


@pytest.fixture(scope="module", name="backbone")
def backbone_fixture() -> Backbone:
    return small_backbone()


@pytest.fixture(scope="module", name="heads")
def heads_fixture(backbone: Backbone) -> DraftHeads:
    return small_heads("hydra", backbone)


@pytest.fixture(scope="module", name="backbone")
def backbone_of_model(model: PreTrainedModel) -> Backbone:
    """Backbone of the ``model`` that the test module defines."""
    return build_backbone(model)
