"""HTTP requests as raw bytes, for requests that no client library sends."""

from __future__ import annotations

import http.client
import socket
import time


def send_raw(url: str, *parts: bytes, pause: float = 0.0) -> tuple[int, bytes]:
    """Send bytes unchanged; returns the status and the body of the response."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for number, part in enumerate(parts):
            time.sleep(pause if number else 0.0)
            connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def post_bytes(path: str, body: bytes, *, length: int | None = None, headers: bytes = b"") -> bytes:
    """Bytes of a POST request; ``length`` overrides the header Content-Length."""
    announced = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {announced}\r\n"
    return head.encode() + headers + b"Connection: close\r\n\r\n" + body
