"""Whether a port can be had, how a server is reached, and which sockets others can reach."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from typing import Any

import pytest

from deployments.addresses import _bind_error, check_free, exposed_sockets, is_loopback, url
from entmtp.errors import EntMTPError


def listening(host: str) -> socket.socket:
    both = host == "::"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.create_server((host, 0), family=family, dualstack_ipv6=both)
    made.settimeout(10)
    return made


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("10.0.0.7", "http://10.0.0.7:8000"),
    ],
)
def test_a_server_is_reached_at_an_address_that_can_be_called(host: str, expected: str) -> None:
    assert url(host, 8000) == expected


@pytest.mark.parametrize("taken", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_port_that_anything_listens_on_is_taken(taken: str) -> None:
    with closing(listening(taken)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EntMTPError, match=rf"^port: {port} on 127\.0\.0\.1 is taken .* give another --port$"):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)


def test_a_name_stands_for_the_address_that_serve_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def newer_first(host: str, port: int, family: int = 0, *rest: int) -> list[Any]:
        """As on most machines, where 'localhost' is ::1 first."""
        families = [one for one in (socket.AF_INET6, socket.AF_INET) if family in (0, one)]
        hosts = {socket.AF_INET6: "::1", socket.AF_INET: "127.0.0.1"}
        return [found for one in families for found in resolve(hosts[one], port, one, socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", newer_first)
    with closing(listening("127.0.0.1")) as other:
        port = other.getsockname()[1]
        with pytest.raises(EntMTPError, match=rf"^port: {port} on localhost is taken"):
            check_free("localhost", port)
    with closing(listening("::1")) as other:
        check_free("localhost", other.getsockname()[1])
        with pytest.raises(EntMTPError, match="is taken"):
            check_free("::1", other.getsockname()[1])


def test_a_port_whose_last_server_has_just_closed_its_connections_is_free() -> None:
    with closing(listening("127.0.0.1")) as other:
        port = other.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), closing(other.accept()[0]):
            pass  # the server's side closes first, and its connection waits for a while
    check_free("127.0.0.1", port)


@pytest.mark.parametrize(("host", "said"), [("203.0.113.1", "^host: 203.0.113.1 "), ("no.such.invalid", "is unknown")])
def test_a_host_that_is_not_this_machine(host: str, said: str) -> None:
    with pytest.raises(EntMTPError, match=said):
        check_free(host, 8000)


def test_a_port_that_needs_more_rights() -> None:
    assert _bind_error("127.0.0.1", 80, OSError(errno.EACCES, "Permission denied")) == (
        "port: 80 on 127.0.0.1 needs more rights; give a --port of 1024 or more"
    )


def test_sockets_that_others_can_reach_are_found() -> None:
    with closing(listening("127.0.0.1")), closing(listening("::1")):
        before = exposed_sockets(os.getpid())
        for host in ("0.0.0.0", "::"):
            with closing(listening(host)) as other:
                (found,) = set(exposed_sockets(os.getpid())) - set(before)
                assert (found.host, found.port) == (host, other.getsockname()[1])


def test_loopback_has_many_names() -> None:
    for host in ("127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "::ffff:0.0.0.0", "10.0.0.1", "example.org"):
        assert not is_loopback(host)
