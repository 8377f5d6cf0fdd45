"""Where the service listens: whether a port can be had, how it is called, and which sockets others can reach."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress
from typing import NamedTuple

import psutil

from entmtp.errors import EntMTPError

ONGOING_PATH = "/-/ongoing"
"""Where each proxy says how many requests for text it is passing on."""

_PRIVILEGED = 1024


class Exposed(NamedTuple):
    """A TCP socket that other machines can reach."""

    process: str
    host: str
    port: int


def url(host: str, port: int) -> str:
    """The URL by which this machine reaches a server that listens on ``host``."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_free(host: str, port: int) -> None:
    """Tries to listen there, with the kind of address that Serve takes.

    Raises:
        EntMTPError: the port is taken, or must not be listened on, or the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        (_, kind, _, _, address), *_ = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise EntMTPError(f"host: '{host}' is unknown ({error}); give an address of this machine") from error
    try:
        with socket.socket(family, kind) as probe:
            # Connections that an earlier server has closed don't hold the port; one that listens does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise EntMTPError(_obstacle(host, port, error)) from error


def _obstacle(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port: {port} on {host} is taken by another program; stop that, or give another --port"
        case errno.EACCES | errno.EPERM:
            return f"port: {port} on {host} needs more rights; give a --port of {_PRIVILEGED} or more"
        case errno.EADDRNOTAVAIL:
            return f"host: {host} is no address of this machine; give one that is, or 127.0.0.1"
    return f"port: {port} on {host} can't be listened on ({error.strerror}); give another --port"


def exposed_sockets(pid: int) -> list[Exposed]:
    """TCP sockets on which a process, or one that descends from it, listens for other machines."""
    found = []
    for process in [root := psutil.Process(pid), *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found += [
                Exposed(process.name(), str(one.laddr.ip), int(one.laddr.port))
                for one in process.net_connections("tcp")
                if one.status == psutil.CONN_LISTEN and not is_loopback(one.laddr.ip)
            ]
    return found


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches an address; False for names, but for 'localhost'."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
