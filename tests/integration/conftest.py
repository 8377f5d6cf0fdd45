"""The service as `make serve` starts it, once for all tests that only send requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import yaml

from entmtp.files import write_text
from tests.helpers.local_service import Served, read_request_log, started
from tests.helpers.paths import ROOT


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the request log."""
    return tmp_path_factory.mktemp("requests")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Path:
    """Configuration of `make serve`, with that folder."""
    given = yaml.safe_load((ROOT / "deployments" / "config.cpu.yaml").read_text())
    given["applications"][0]["args"]["log_folder"] = str(logs)
    return write_text(tmp_path_factory.mktemp("config") / "config.yaml", yaml.safe_dump(given))


@pytest.fixture(scope="session")
def served(config: Path, logs: Path) -> Iterator[Served]:
    """The bundled model's service."""
    with started("--config", str(config)) as found:
        yield found
    assert read_request_log(logs)  # the log outlives the service


@pytest.fixture(scope="session")
def url(served: Served) -> str:
    return served.address


@pytest.fixture(scope="session")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
