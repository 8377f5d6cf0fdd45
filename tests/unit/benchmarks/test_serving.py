"""The service that benchmarks start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import serving
from benchmarks.serving import service_address, with_kernels
from deployments.serve_local import CONFIG, read_config
from deployments.settings import AppArgs
from entmtp.errors import EntMTPError


def test_every_engine_has_the_chosen_kernels_and_nothing_else_changes() -> None:
    config = read_config(CONFIG)
    changed = with_kernels(config, "fused-int8")
    assert {one.kernels for one in AppArgs.parse(**changed["applications"][0]["args"]).engines} == {"fused-int8"}
    assert config == read_config(CONFIG)
    assert with_kernels(changed, "auto") == with_kernels(config, "auto")


def test_the_service_is_started_with_the_chosen_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def started(config: Path, port: int) -> Iterator[SimpleNamespace]:
        (engine,) = read_config(config)["applications"][0]["args"]["engines"]
        yield SimpleNamespace(address=f"http://{engine['kernels']}:{port}")

    monkeypatch.setattr(serving, "service", started)
    monkeypatch.setattr(serving, "free_ports", lambda count: [4321])
    with service_address(None, "fused-int8") as address:
        assert address == "http://fused-int8:4321"


def test_a_service_that_runs_has_its_own_kernels() -> None:
    with service_address("http://here") as address:
        assert address == "http://here"
    message = r"^kernels: 'fused-int8' can't be set for the service at http://here"
    with pytest.raises(EntMTPError, match=message), service_address("http://here", "fused-int8"):
        pass
