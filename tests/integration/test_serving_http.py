"""The running service's HTTP interface: metrics, log, malformed requests and paths (`make serve`, real Ray)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from deployments.engines.metrics import ENGINE_METRICS
from tests.helpers.local_service import MODEL, Service, read_request_log
from tests.helpers.paths import ROOT
from tests.helpers.raw_http import post_bytes, send_raw

pytestmark = pytest.mark.xdist_group("ray")


def test_every_metric_is_there_before_the_first_request(service: Service) -> None:
    text = service.first_metrics
    for one in ENGINE_METRICS:
        assert any(line.startswith(f"ray_entmtp_{one.name}") for line in text.splitlines()), one.name
    assert 'requests_refused_total{model="smollm2-135m"} 0.0' in text


def within_a_second(logs: Path, wanted: Callable[[str], bool], count: int) -> list[dict[str, Any]]:
    """Lines of the log for requests with wanted ids, as soon as there are so many, or after a second."""
    deadline = time.monotonic() + 1.0
    while True:
        last = time.monotonic() > deadline
        lines = [line for line in read_request_log(logs) if wanted(line["request_id"])]
        if last or len(lines) >= count:
            return lines
        time.sleep(0.05)


def test_every_request_is_in_the_log_within_a_second(url: str, logs: Path) -> None:
    good = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 2}).encode()
    given = [
        (good, 200),
        (b'{"model": 3}', 400),
        (b"{", 400),
        (good.replace(MODEL.encode(), b"other"), 404),
        (b'{"model": "' + b"x" * 3_000_000 + b'"}', 413),
    ]
    for number, (body, status) in enumerate(given):
        request_id = f"one-line-{number}"
        found, _ = send_raw(
            url, post_bytes("/v1/completions", body, headers=f"X-Request-Id: {request_id}\r\n".encode())
        )
        lines = within_a_second(logs, lambda id, request_id=request_id: id == request_id, 1)  # type: ignore[misc]
        assert [line["status"] for line in lines] == [found] == [status]


def test_what_the_proxy_refuses_is_in_the_log(service: Service, url: str, logs: Path, config: Path) -> None:
    refused = asyncio.Event()

    async def burst(session: aiohttp.ClientSession, wave: str, count: int, tokens: int) -> list[int]:
        async def ask(number: int) -> int:
            body = {"model": MODEL, "prompt": "Once", "max_tokens": tokens}
            body |= {"speculation": {"max_nodes": number}}
            headers = {"x-request-id": f"{wave}-{number}"}
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                await response.read()
                if response.status == 429:
                    refused.set()
                return response.status

        return await asyncio.gather(*(ask(number) for number in range(count)))

    async def scene() -> list[int]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
            first = asyncio.create_task(burst(session, "first", 40, 40))
            await asyncio.wait_for(refused.wait(), 300)  # now the proxy knows that the engine is full
            return [*await burst(session, "second", 20, 2), *await first]

    service.change(config, max_waiting=4)
    try:
        statuses = asyncio.run(scene())
    finally:
        service.change(config, max_waiting=256)  # other tests use the service too
    assert set(statuses) == {200, 429}
    lines = within_a_second(logs, lambda id: id.startswith(("first-", "second-")), 60)
    assert sorted(line["status"] for line in lines) == sorted(statuses)
    assert len({line["request_id"] for line in lines}) == 60
    by_proxy = [json.loads(line) for path in logs.glob("proxy-*") for line in path.read_text().splitlines()]
    assert len([line for line in by_proxy if line["request_id"].startswith("second-")]) >= 10
    assert {line["model"] for line in by_proxy} == {MODEL}


def test_models_health_and_metrics(service: Service, client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    service.wait_until_ready_again()  # another test may have changed its configuration
    for path in ("/health", "/ready", "/openapi.json", "/docs"):
        with urllib.request.urlopen(f"{url}{path}") as response:
            assert response.status == 200
    deadline = time.monotonic() + 300  # Ray exports every few seconds
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/metrics") as response:
            text = response.read().decode()
        if "ray_entmtp_spec_decode_num_accepted_tokens" in text and "ray_entmtp_num_requests_running" in text:
            break
        time.sleep(2)
    for name in ("time_to_first_token_seconds_bucket", "generation_tokens", "goodput_tokens_per_second", "steps"):
        assert f"ray_entmtp_{name}" in text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xfe{}", 400),
        (b'{"model": "\xc3\x28"}', 400),
        (b"[" * 200_000, 400),
        (b'{"messages":' * 50_000, 400),
        (b'{"model": "' + b"x" * 3_000_000 + b'"}', 413),
        (b"", 400),
        (b"null", 400),
    ],
    ids=["no UTF-8", "half a character", "deep list", "deep object", "too long", "nothing", "null"],
)
def test_bodies_that_nobody_should_send(url: str, body: bytes, status: int) -> None:
    found, answer = send_raw(url, post_bytes("/v1/chat/completions", body))
    assert found == status
    assert json.loads(answer)["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(url: str) -> None:
    began = time.monotonic()
    status, answer = send_raw(url, post_bytes("/v1/completions", b'{"model"', length=1000))
    assert status == 408
    assert json.loads(answer)["error"]["type"] == "timeout_error"
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("headers", "most"),
    [
        (b"X-Long: " + b"a" * 200_000 + b"\r\n", 499),
        (b"".join(b"X-%d: a\r\n" % number for number in range(2000)), 499),
        (b"X-Request-Id: \x01\x02\r\n", 499),
        (b"Authorization: Bearer " + b"\xff" * 100 + b"\r\n", 499),
        (b"Content-Type: text/plain\r\n", 499),
    ],
    ids=["too long", "too many", "control characters", "key of no text", "no JSON"],
)
def test_headers_that_nobody_should_send(url: str, headers: bytes, most: int) -> None:
    body = f'{{"model": "{MODEL}", "prompt": "x", "max_tokens": -1}}'.encode()
    status, _ = send_raw(url, post_bytes("/v1/completions", body, headers=headers))
    assert 400 <= status <= most


def test_other_paths_and_methods(url: str) -> None:
    for request, status in ((b"GET /v1/nothing", 404), (b"DELETE /v1/models", 405), (b"GET /v1/completions", 405)):
        found, answer = send_raw(url, request + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert found == status
        assert json.loads(answer)["error"]["message"]


def test_a_taken_port_is_reported(url: str) -> None:
    command = [sys.executable, "-m", "deployments.serve_local", "--port", url.rpartition(":")[2]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("entmtp serve: port:")
    assert "Traceback" not in done.stderr
