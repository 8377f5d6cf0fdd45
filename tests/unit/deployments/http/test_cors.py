"""Refusals of a proxy that pages of other origins can read."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.experimental import internal_kv

from deployments import proxy_settings, stop_file
from deployments.http.proxy_middleware import ProxyMiddleware
from deployments.protocol.errors import FULL_HEADER
from deployments.proxy_settings import ProxySettings, publish_proxy_settings, read_proxy_settings
from tests.helpers.proxied_ingresses import LOGGED, Ingresses, body, part, send_through, start

PAGE = "https://chat.example"
FULL = [start(429, [(FULL_HEADER, b"1"), (b"retry-after", b"3"), LOGGED]), part(b"full")]


def refused(status: int, origin: str) -> dict[bytes, bytes]:
    """Headers of the proxy's own refusal of a page's request."""
    headers = [(b"origin", origin.encode())] if origin else []
    through = ProxyMiddleware(
        {429: Ingresses(FULL), 500: Ingresses([], []), 503: Ingresses([start(404), part(b"no")])}[status]
    )
    if status == 429:
        send_through(through, body(b'{"model": "a"}'))
    head, _ = send_through(through, body(b'{"model": "a"}'), headers=headers)
    assert head["status"] == status
    return dict(head["headers"])


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ((PAGE, "https://other.example"), PAGE, PAGE.encode()),
        (("*",), PAGE, b"*"),
        (("https://other.example",), PAGE, None),
        ((), PAGE, None),
        ((PAGE,), "", None),
    ],
)
def test_a_page_reads_what_the_proxy_refuses(
    status: int,
    origins: tuple[str, ...],
    origin: str,
    allowed: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv(stop_file.VARIABLE, raising=False)
    monkeypatch.setattr(proxy_settings, "read_proxy_settings", lambda: ProxySettings(tmp_path, origins))
    headers = refused(status, origin)
    assert headers.get(b"access-control-allow-origin") == allowed
    assert headers.get(b"access-control-expose-headers") == (None if allowed is None else b"Retry-After, X-Request-Id")
    assert headers.get(b"vary") == (None if allowed is None else b"Origin")


def test_what_an_ingress_announces_is_what_proxies_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[bytes, bytes] = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_initialized", lambda: True)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", lambda key, value, overwrite: stored.update({key: value}))
    monkeypatch.setattr(internal_kv, "_internal_kv_get", stored.get)
    assert read_proxy_settings() is None
    for made in (ProxySettings(Path("~/logs")), ProxySettings(Path("/logs"), (PAGE, "*"))):
        publish_proxy_settings(made)
        assert read_proxy_settings() == made


def test_a_cluster_that_does_not_answer_harms_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> ProxySettings:
        raise RuntimeError("no cluster")

    monkeypatch.setattr(proxy_settings, "read_proxy_settings", lost)
    assert b"access-control-allow-origin" not in refused(500, PAGE)
