"""The service as `make serve` starts it, once for the whole run: `test_stopping` is the last file that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from entmtp.files import write_text
from tests.helpers.bundled_backbone import loaded_once
from tests.helpers.paths import ROOT

# Packages of the service are imported where they are used: a machine that runs `test_on_a_gpu` need not have them.
if TYPE_CHECKING:
    import openai

    from tests.helpers.http_api import Lines
    from tests.helpers.local_service import Service


@pytest.fixture(scope="module")
def loads_once(step_costs: None) -> Iterator[None]:
    """Engines of the bundled model share its backbone, and their step costs are known."""
    with loaded_once():
        yield


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the request log."""
    return tmp_path_factory.mktemp("requests")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Path:
    """Configuration of `make serve`, with that folder."""
    import yaml

    given = yaml.safe_load((ROOT / "deployments" / "config.cpu.yaml").read_text())
    given["applications"][0]["args"]["log_folder"] = str(logs)
    return write_text(tmp_path_factory.mktemp("config") / "config.yaml", yaml.safe_dump(given))


@pytest.fixture(scope="session")
def service(config: Path, step_costs: None) -> Iterator[Service]:
    """The bundled model's service, which `test_stopping` ends."""
    from tests.helpers.local_service import started

    with started(config) as made:
        made.wait_until_ready()
        yield made


@pytest.fixture(scope="session")
def url(service: Service) -> str:
    return service.url


@pytest.fixture(scope="session")
def client(url: str) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def scripted_lines() -> Lines:
    """Access log of the scripted service."""
    return []


@pytest.fixture(scope="module")
def scripted_url(tmp_path_factory: pytest.TempPathFactory, scripted_lines: Lines) -> Iterator[str]:
    """Address of a service whose model writes given texts."""
    from tests.helpers.scripted_service import scripted_service

    with scripted_service(tmp_path_factory.mktemp("scripted"), scripted_lines) as address:
        yield address


@pytest.fixture(scope="module")
def scripted_client(scripted_url: str) -> openai.OpenAI:
    import openai

    from tests.helpers.http_api import SECRET

    return openai.OpenAI(base_url=f"{scripted_url}/v1", api_key=SECRET, max_retries=0)
