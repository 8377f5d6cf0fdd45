"""Marks of tests that need instructions of the CPU."""

import pytest

from entmtp.models.kernels import compiled

needs_vnni = pytest.mark.skipif(
    compiled.unsupported_reason() is not None or compiled.library().entmtp_digits() < 2, reason="no VNNI instructions"
)
