"""Settings whose default depends on the model and the device."""

from __future__ import annotations

import pytest

from entmtp.settings import DEFAULT_CONTEXT, MAX_DEFAULT_CONTEXT, EngineSettings


@pytest.mark.parametrize(
    ("context", "positions", "device", "expected"),
    [
        (None, 8192, "cpu", 8192),
        (None, 2**30, "cpu", MAX_DEFAULT_CONTEXT),
        (None, 8192, "cuda", DEFAULT_CONTEXT),
        (None, 8192, "balanced", DEFAULT_CONTEXT),
        (None, 1024, "cuda", 1024),
        (4096, 8192, "cuda", 4096),
        (4096, 2048, "cpu", 2048),
    ],
)
def test_the_context_is_the_models_own_unless_it_is_given(
    context: int | None, positions: int, device: str, expected: int
) -> None:
    assert EngineSettings(context=context).context_of(positions, device) == expected
