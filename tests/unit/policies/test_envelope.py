import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from entmtp.policies.envelope import upper_envelope

HEIGHTS = st.tuples(st.integers(1, 5), st.integers(1, 8)).flatmap(
    lambda size: arrays(np.float64, size, elements=st.integers(-20, 20).map(float))
)


@given(HEIGHTS, st.floats(-1, 6))
def test_the_line_that_is_found_is_the_highest(heights: np.ndarray, x: float) -> None:
    corners = np.arange(float(len(heights)))
    at_x = np.array([np.interp(x, corners, line) for line in heights.T])
    assert at_x[upper_envelope(corners.tolist(), heights).at(x)] == pytest.approx(at_x.max(), abs=1e-9)


@given(HEIGHTS)
def test_breaks_ascend(heights: np.ndarray) -> None:
    found = upper_envelope([float(at) for at in range(len(heights))], heights)
    assert found.breaks == sorted(found.breaks)
    assert len(found.lines) == len(found.breaks) + 1
