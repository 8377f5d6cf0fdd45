"""A service on this machine from its start on: what it tells, who can reach it, and how it is stopped at once."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.helpers.local_service import MODEL, WAIT_SECONDS, Service, started
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.xdist_group("ray")

LISTEN = "0A"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def listening_sockets(pid: int) -> Iterator[tuple[Address, int]]:
    """Addresses and ports on which a process listens by TCP, as Linux itself tells."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
        except FileNotFoundError:
            continue
        if found:
            inodes.add(found[1])
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = row.split()
            if state == LISTEN and rest[5] in inodes:
                host, port = local.split(":")
                words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
                packed = struct.pack(f"={len(words)}I", *words)
                yield ipaddress.ip_address(packed), int(port, 16)


def test_it_tells_what_it_does_in_order(service: Service) -> None:
    engine = "smollm2-dynamic"
    expected = [
        "starting a local Ray cluster (http://127.0.0.1:",
        "Ray runs (dashboard: http://127.0.0.1:",
        f"application: starting {engine}",
        f"{engine}: loading model bundled for entmtp-dynamic",
        f"{engine}: loaded (",
        f"ready: http://127.0.0.1:{service.port}",
        "dashboard: http://127.0.0.1:",
    ]
    at = [next(n for n, line in enumerate(service.lines) if line.startswith(one)) for one in expected]
    assert at == sorted(at)
    assert not any("measur" in line for line in service.lines)  # its step costs are known


def test_nothing_of_it_listens_for_other_machines(service: Service) -> None:
    found: dict[tuple[str, Address, int], psutil.Process] = {}
    for process in service.look():
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            found |= {(process.name(), host, port): process for host, port in listening_sockets(process.pid)}
    assert any(port == service.port for _, _, port in found)
    replicas = {process.pid for (name, _, _), process in found.items() if name.startswith("ray::ServeRepl")}
    assert len(replicas) == 3  # an engine and two ingresses, each with Ray's port and Serve's
    reachable = [
        (name, str(host), port)
        for name, host, port in found
        if not (getattr(host, "ipv4_mapped", None) or host).is_loopback
    ]
    assert reachable == []


def test_the_request_of_the_ready_message_is_answered(service: Service) -> None:
    text = "\n".join(service.lines).replace("\\\n", " ")
    (line,) = [one for one in text.splitlines() if one.startswith("curl ")]
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    events = [one for one in done.stdout.splitlines() if one.startswith("data: ")]
    assert len(events) > 2
    assert events[-1] == "data: [DONE]"


def test_a_port_on_which_it_listens_is_refused_at_once(service: Service, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "entmtp.cli", "serve", "--port", str(service.port)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    said = f"entmtp serve: port: {service.port} on 127.0.0.1 is taken by another program; stop that, or give another"
    assert done.stderr.startswith(said)
    assert done.stdout == ""  # Ray was not even started


@pytest.mark.slow
def test_a_burst_is_answered_in_the_order_of_arrival(service: Service) -> None:
    """64 requests at once, of which 8 run: the others wait for a slot, first come, first served."""

    async def first_token(session: aiohttp.ClientSession, number: int) -> float:
        """Time at which the service began to answer a request that is sent after those before it."""
        await asyncio.sleep(0.02 * number)
        body = {"model": MODEL, "prompt": f"{number} plus {number} is", "max_tokens": 8, "ignore_eos": True}
        async with session.post(f"{service.url}/v1/completions", json=body | {"stream": True}) as response:
            assert response.status == 200
            first = await response.content.readuntil(b"\n")
            at = time.monotonic()
            text = first + await response.content.read()
        assert b"error" not in text
        assert text.rstrip().endswith(b"data: [DONE]")
        return at

    async def scene() -> list[float]:
        timeout, connector = aiohttp.ClientTimeout(total=WAIT_SECONDS), aiohttp.TCPConnector(limit=64)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            return await asyncio.gather(*(first_token(session, number) for number in range(64)))

    times = asyncio.run(scene())
    turns = sorted(range(64), key=times.__getitem__)
    # The 8 that end together let the next 8 begin together, and two ingresses answer them.
    assert max(abs(turn - number) for turn, number in enumerate(turns)) < 16, turns


def test_a_second_interrupt_stops_it_at_once_even_while_it_starts(config: Path) -> None:
    with started(config) as service:
        service.wait_for("application entmtp: deploying")
        assert len(service.look()) > 5
        service.interrupt()
        service.interrupt()
        assert service.ended(20) == 130
        assert service.lines[-1] == "entmtp serve: interrupted; the service has stopped"
        assert service.left() == []
