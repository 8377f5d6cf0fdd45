"""Addresses of the service: its URL, whether its port is free, and which sockets other machines can reach."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress
from typing import NamedTuple

import psutil

from entmtp.errors import EntMTPError

ONGOING_PATH = "/-/ongoing"
"""Path at which each proxy reports how many requests for text it is serving."""

_PRIVILEGED = 1024


class ExposedSocket(NamedTuple):
    """A TCP socket that other machines can reach."""

    process: str
    host: str
    port: int


def url(host: str, port: int) -> str:
    """URL at which this machine reaches a server that listens on ``host``."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_free(host: str, port: int) -> None:
    """Check that the service can listen on a port, with the address family that Serve uses.

    Raises:
        EntMTPError: the port is taken or not permitted, or the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        (_, kind, _, _, address), *_ = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise EntMTPError(f"host: '{host}' is unknown ({error}); give an address of this machine") from error
    try:
        with socket.socket(family, kind) as probe:
            # With this option, closed connections of an earlier server don't block the port, as for Serve itself.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise EntMTPError(_bind_error(host, port, error)) from error


def _bind_error(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port: {port} on {host} is taken by another program; stop that, or give another --port"
        case errno.EACCES | errno.EPERM:
            return f"port: {port} on {host} needs more rights; give a --port of {_PRIVILEGED} or more"
        case errno.EADDRNOTAVAIL:
            return f"host: {host} is no address of this machine; give one that is, or 127.0.0.1"
    return f"port: {port} on {host} can't be listened on ({error.strerror}); give another --port"


def exposed_sockets(pid: int) -> list[ExposedSocket]:
    """TCP sockets on which a process, or a descendant, listens on other interfaces than loopback."""
    found = []
    for process in [root := psutil.Process(pid), *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found += [
                ExposedSocket(process.name(), str(one.laddr.ip), int(one.laddr.port))
                for one in process.net_connections("tcp")
                if one.status == psutil.CONN_LISTEN and not is_loopback(one.laddr.ip)
            ]
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. Of names, only 'localhost' counts as loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
