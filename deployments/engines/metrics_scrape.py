"""The service's metrics, gathered from the nodes of the cluster, each of which exports its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence

import aiohttp
import ray

from deployments.engines.metrics import PREFIX, zero_lines

_SECONDS = 5.0
_OWNER = re.compile(r'[{,](?:engine|model)="([^"]*)"')


async def scraped(engines: Sequence[str], models: Sequence[str]) -> str:
    """All nodes' metrics of this service in Prometheus' text format; a node that does not answer is left out.

    What an engine has not told yet is zero, so that every metric is there from the start.
    """
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes if node["Alive"]
    ]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session:
        texts = await asyncio.gather(*(_of(session, address) for address in addresses))
    return merged_text(texts, zero_lines(engines, models))


def merged_text(texts: Sequence[str], zeros: str = "") -> str:
    """The lines of ours; those of a metric stand together, what says what it is once.

    Of ``zeros``, what no text says of the same metric of the same engine.
    """
    metrics: dict[str, dict[str, str]] = {}
    told: set[tuple[str, str]] = set()
    for name, line in _lines(texts):
        told.add((name, _owner(line)))
        metrics.setdefault(name, {}).setdefault(_key(line), line)
    for name, line in _lines([zeros]):
        if line.startswith("#") or (name, _owner(line)) not in told:
            metrics.setdefault(name, {}).setdefault(_key(line), line)
    return "".join(f"{line}\n" for lines in metrics.values() for line in lines.values())


def _lines(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Ours, each with the name of its metric."""
    for text in texts:
        name = ""
        for line in text.splitlines():
            about = line.startswith("# ")
            if about:
                name = line.split()[2]
            if name.startswith(f"ray_{PREFIX}") and (about or line.startswith(name)):
                yield name, line


def _key(line: str) -> str:
    """Lines with the same key say the same; of a metric's HELP and TYPE there is one each."""
    return " ".join(line.split()[:2]) if line.startswith("#") else line


def _owner(line: str) -> str:
    """The engine or model of a sample; nothing for other lines."""
    found = None if line.startswith("#") else _OWNER.search(line)
    return "" if found is None else found[1]


async def _of(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(address) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""
