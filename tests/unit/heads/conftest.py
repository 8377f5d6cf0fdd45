"""A tiny backbone and heads with random weights, none of which is zero by its initial value."""

import pytest

from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from tests.helpers.tiny_models import STATELESS_KINDS, random_heads, tiny_model


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return build_backbone(tiny_model("llama"))


@pytest.fixture(params=sorted(STATELESS_KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def heads(kind: str, backbone: Backbone) -> StatelessHeads:
    return random_heads(kind, backbone).attach(backbone)


@pytest.fixture
def exact_heads(kind: str) -> StatelessHeads:
    """Heads on PyTorch's own kernels, in float32 on every machine."""
    exact = build_backbone(tiny_model("llama"), kernels="eager")
    return random_heads(kind, exact).attach(exact)
