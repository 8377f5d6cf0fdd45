"""Short cuts for whole programs, in parts that no end-to-end test looks at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from entmtp.decoding import measure_cost
from tests.helpers.blank_figures import blank_figures


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Draw no figures, and measure a step's cost by one step."""
    with pytest.MonkeyPatch.context() as patch, blank_figures():
        patch.setattr(measure_cost, "_REPETITIONS", 1)
        yield
