"""The service's own OpenAPI document, and thousands of requests made from it: none may break the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from tests.helpers.local_service import MODEL, WAIT_SECONDS, started
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.xdist_group("ray")

CASES = 2000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, step_costs: None) -> Iterator[str]:
    """A service whose answers can only be short."""
    config = yaml.safe_load((ROOT / "deployments" / "config.cpu.yaml").read_text())
    engine = config["applications"][0]["args"]["engines"][0]
    engine["engine"] = {"slots": 8, "context": 64, "max_waiting": 16}
    path: Path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with started(path) as service:
        service.wait_until_ready()
        yield service.url
        service.interrupt()
        assert service.ended(WAIT_SECONDS) == 130


@pytest.mark.slow
def test_no_request_breaks_the_service(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    # What takes nothing has but one case.
    each = CASES // sum(bool(operation.body or operation.path_parameters) for operation in operations) + 1
    statuses: dict[int, int] = {}

    for operation in operations:

        @settings(
            max_examples=each,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), known=st.booleans())
        def sent(case: Any, known: bool) -> None:
            if known and isinstance(case.body, dict):
                case.body["model"] = MODEL
            response = case.call(timeout=60)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            # Whoever gives a deadline may miss it.
            late = response.status_code == 504 and isinstance(case.body, dict) and case.body.get("timeout_s")
            assert response.status_code < 500 or late, (case.body, response.text)

        sent()
    assert sum(statuses.values()) >= CASES
    assert statuses.get(200, 0) > 0
