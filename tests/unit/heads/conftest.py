"""A tiny backbone and heads with random weights, none of which is zero by its initial value."""

from collections.abc import Iterator

import pytest

from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels import compiled, fused_draft, fused_linear, fused_projection
from entmtp.settings import Kernels
from tests.helpers.tiny_models import STATELESS_KINDS, random_heads, tiny_model


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return build_backbone(tiny_model("llama"))


@pytest.fixture(scope="module")
def unrounded() -> Iterator[None]:
    """Compiled drafting kernels that round neither weights nor states.

    Rounding makes a small difference in a state, such as that of sums in another order, a large one in some result.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in fused_linear, fused_draft, fused_projection:
            patch.setattr(module, "draft_weight", lambda weight: weight)
        yield


@pytest.fixture(
    scope="module",
    params=[
        "eager",
        pytest.param(
            "fused", marks=pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")
        ),
    ],
)
def kernels(request: pytest.FixtureRequest, unrounded: None) -> Kernels:
    """The kernels that draft: PyTorch's, or the compiled ones without rounding, for which no formula is exact."""
    found: Kernels = request.param
    return found


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
